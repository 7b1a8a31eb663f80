"""The same music asked for in other words: fixed rewordings of a caption, and slips drawn at random."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable

# Words for instruments, moods and forms, and what else they are called.
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


def rewordings(caption: str) -> dict[str, str]:
    """Name -> caption, of those that differ from it: other order, other words, other case, fewer words.

    - `order`: the parts between commas, last first; without commas the words after the first half first.
    - `synonyms`: words for instruments and moods replaced by like ones.
    - `case`: capitals, and no punctuation.
    - `short`: the first half of its parts, or of its words.
    """
    parts, words = [part.strip() for part in caption.split(",") if part.strip()], caption.split()
    half = -(-len(words) // 2)
    if len(parts) > 1:
        order, short = ", ".join(reversed(parts)), ", ".join(parts[: -(-len(parts) // 2)])
    else:
        order, short = " ".join(words[half:] + words[:half]), " ".join(words[:half])
    found = {
        "order": order,
        "synonyms": re.sub(r"[A-Za-z]+", lambda match: _synonym(match.group()), caption),
        "case": " ".join(re.sub(r"[^\w\s]", " ", caption).upper().split()),
        "short": short,
    }
    return {name: text for name, text in found.items() if text and text != caption}


def random_rewordings(caption: str, seed: str) -> dict[str, str]:
    """Name -> caption, one of each kind of slip that it allows and that changes it, drawn at random.

    - `doubled`, `missing`: a letter twice, or not at all.
    - `swapped`: two neighbouring letters of a word.
    - `dropped`: a word less.
    - `shuffled`: the words in another order.
    - `capitals`: a word in capitals, or in small letters.
    - `punctuation`: a mark more, or another one.

    Args:
        caption: the text to change.
        seed: of the draw; equal seeds give equal slips.
    """
    found = {}
    for name, slip in SLIPS.items():
        changed = slip(caption, random.Random(f"{seed} {name} {caption}"))
        if changed.strip() and changed != caption:
            found[name] = changed
    return found


def random_rewording(caption: str, seed: str) -> tuple[str, str] | None:
    """Name and caption of one slip among `random_rewordings`, but for case and punctuation, which a filter may undo."""
    found = [(name, text) for name, text in random_rewordings(caption, seed).items() if name not in SHALLOW]
    return random.Random(f"{seed} {caption}").choice(found) if found else None


def _doubled(caption: str, rng: random.Random) -> str:
    return _at_letter(caption, rng, lambda letter: letter * 2)


def _missing(caption: str, rng: random.Random) -> str:
    return _at_letter(caption, rng, lambda letter: "")


def _at_letter(caption: str, rng: random.Random, change: Callable[[str], str]) -> str:
    places = [i for i, letter in enumerate(caption) if letter.isalpha()]
    if not places:
        return caption
    at = rng.choice(places)
    return caption[:at] + change(caption[at]) + caption[at + 1 :]


def _swapped(caption: str, rng: random.Random) -> str:
    places = [i for i, (a, b) in enumerate(itertools.pairwise(caption)) if a.isalpha() and b.isalpha() and a != b]
    if not places:
        return caption
    at = rng.choice(places)
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


SLIPS: dict[str, Callable[[str, random.Random], str]] = {
    "doubled": _doubled, "missing": _missing, "swapped": _swapped, "dropped": _dropped, "shuffled": _shuffled,
    "capitals": _capitals, "punctuation": _punctuation,
}  # fmt: skip
SHALLOW = frozenset({"capitals", "punctuation"})


def _synonym(word: str) -> str:
    other = SYNONYMS.get(word.lower(), word)
    return other.capitalize() if word[0].isupper() and other != word else other
