"""Paraphrases of a caption: fixed ones, and random edits."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable

# Synonyms of instruments, moods and forms.
SYNONYMS = {
    "slow": "unhurried", "fast": "rapid", "quick": "brisk", "sad": "sorrowful", "happy": "joyful", "calm": "peaceful",
    "lonely": "solitary", "soft": "gentle", "loud": "forceful", "bright": "brilliant", "dark": "sombre",
    "triumphant": "victorious", "radiant": "glowing", "sneaky": "stealthy", "spooky": "eerie", "bouncy": "springy",
    "melancholic": "wistful", "galloping": "racing", "bluesy": "blues-like", "cheerful": "merry", "tender": "delicate",
    "stormy": "turbulent", "solemn": "grave", "warm": "mellow", "elegant": "graceful", "bold": "daring",
    "flute": "wooden flute", "lute": "plucked lute", "piano": "keyboard", "organ": "pipe organ", "oboe": "double reed",
    "brass": "horns", "strings": "violins and cellos", "string": "strings", "drums": "percussion", "guitar": "guitars",
    "violin": "fiddle", "banjo": "five-string banjo", "bells": "chimes", "harp": "concert harp", "bass": "low end",
    "pizzicato": "plucked strings", "pad": "background chords", "synth": "synthesiser", "vocals": "singing",
    "ballad": "slow song", "dance": "dance tune", "march": "marching tune", "hymn": "church song", "carol": "yule song",
    "song": "tune", "bpm": "beats per minute", "beat": "rhythm", "solo": "unaccompanied", "alone": "by itself",
}  # fmt: skip


def paraphrases(caption: str) -> dict[str, str]:
    """Fixed paraphrases by name, those that differ from the caption.

    - `order`: the parts between commas in reverse order; without commas the second half of the words first.
    - `synonyms`: words for instruments and moods replaced by synonyms.
    - `case`: capitals, without punctuation.
    - `short`: the first half of the parts, or of the words.
    """
    parts, words = [part.strip() for part in caption.split(",") if part.strip()], caption.split()
    half = -(-len(words) // 2)
    if len(parts) > 1:
        order, short = ", ".join(reversed(parts)), ", ".join(parts[: -(-len(parts) // 2)])
    else:
        order, short = " ".join(words[half:] + words[:half]), " ".join(words[:half])
    texts = {
        "order": order,
        "synonyms": re.sub(r"[A-Za-z]+", lambda match: _synonym(match.group()), caption),
        "case": " ".join(re.sub(r"[^\w\s]", " ", caption).upper().split()),
        "short": short,
    }
    return {name: text for name, text in texts.items() if text and text != caption}


def random_paraphrases(caption: str, seed: str) -> dict[str, str]:
    """Random edits by name, one of each kind that changes the caption.

    - `doubled`, `missing`: one letter doubled, or removed.
    - `swapped`: two neighbouring letters of a word swapped.
    - `dropped`: one word removed.
    - `shuffled`: the words in random order.
    - `capitals`: one word in upper case, or in lower case.
    - `punctuation`: one punctuation mark added, or replaced.

    Args:
        caption: the text to change.
        seed: random seed; equal seeds give equal edits.
    """
    edited = {}
    for name, edit in EDITS.items():
        text = edit(caption, random.Random(f"{seed} {name} {caption}"))
        if text.strip() and text != caption:
            edited[name] = text
    return edited


def random_paraphrase(caption: str, seed: str) -> tuple[str, str] | None:
    """Name and text of one of `random_paraphrases`; not of case or punctuation, which a filter may normalise."""
    edited = [(name, text) for name, text in random_paraphrases(caption, seed).items() if name not in NORMALISED]
    return random.Random(f"{seed} {caption}").choice(edited) if edited else None


def _doubled(caption: str, rng: random.Random) -> str:
    return _at_letter(caption, rng, lambda letter: letter * 2)


def _missing(caption: str, rng: random.Random) -> str:
    return _at_letter(caption, rng, lambda letter: "")


def _at_letter(caption: str, rng: random.Random, change: Callable[[str], str]) -> str:
    positions = [i for i, letter in enumerate(caption) if letter.isalpha()]
    if not positions:
        return caption
    at = rng.choice(positions)
    return caption[:at] + change(caption[at]) + caption[at + 1 :]


def _swapped(caption: str, rng: random.Random) -> str:
    positions = [i for i, (a, b) in enumerate(itertools.pairwise(caption)) if a.isalpha() and b.isalpha() and a != b]
    if not positions:
        return caption
    at = rng.choice(positions)
    return caption[:at] + caption[at + 1] + caption[at] + caption[at + 2 :]


def _dropped(caption: str, rng: random.Random) -> str:
    words = caption.split()
    if len(words) > 1:
        del words[rng.randrange(len(words))]
    return " ".join(words)


def _shuffled(caption: str, rng: random.Random) -> str:
    words = caption.split()
    for _ in range(8):  # a shuffle may give the same order again
        rng.shuffle(words)
        if words != caption.split():
            break
    return " ".join(words)


def _capitals(caption: str, rng: random.Random) -> str:
    words = caption.split()
    if words:
        at = rng.randrange(len(words))
        words[at] = words[at].lower() if words[at].isupper() else words[at].upper()
    return " ".join(words)


def _punctuation(caption: str, rng: random.Random) -> str:
    words = caption.split()
    if words:
        at = rng.randrange(len(words))
        mark = rng.choice(".!;:")
        words[at] = words[at].rstrip(",.;:!?") + mark
    return " ".join(words)


EDITS: dict[str, Callable[[str, random.Random], str]] = {
    "doubled": _doubled, "missing": _missing, "swapped": _swapped, "dropped": _dropped, "shuffled": _shuffled,
    "capitals": _capitals, "punctuation": _punctuation,
}  # fmt: skip
NORMALISED = frozenset({"capitals", "punctuation"})


def _synonym(word: str) -> str:
    synonym = SYNONYMS.get(word.lower(), word)
    return synonym.capitalize() if word[0].isupper() and synonym != word else synonym
