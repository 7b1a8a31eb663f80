"""The same music asked for in other words: deterministic rewordings of a caption."""

from __future__ import annotations

import re

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


def _synonym(word: str) -> str:
    other = SYNONYMS.get(word.lower(), word)
    return other.capitalize() if word[0].isupper() and other != word else other
