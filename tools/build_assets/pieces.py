"""Openings of public-domain scores from music21's corpus, with random General-MIDI instruments, tempo and caption."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from string import capwords
from typing import Any

import numpy as np

from .midi import Note

# Folder of the corpus: composer, form, how often it is drawn. Palestrina and the Essen folk songs are left out: their
# encodings reserve rights.
REPERTORIES = {
    "bach": ("Johann Sebastian Bach", "chorale", 0.45),
    "ryansMammoth": ("Traditional (Ryan's Mammoth Collection, 1883)", "", 0.45),
    "monteverdi": ("Claudio Monteverdi", "madrigal", 0.1),
}
FASTEST = 124  # bpm
DANCES = ("reel", "jig", "hornpipe", "strathspey", "clog", "walk-around", "essence")
# What captions call it: programs, the highest part first; the last serves all parts below.
ENSEMBLES = {
    "church organ": (19,),
    "reed organ": (20,),
    "piano": (0,),
    "harpsichord": (6,),
    "electric piano": (4,),
    "accordion": (21,),
    "string quartet": (40, 40, 41, 42),
    "string orchestra": (48,),
    "choir": (52,),
    "brass ensemble": (56, 60, 57, 57, 58),
    "woodwind quartet": (73, 68, 71, 70),
    "saxophone quartet": (64, 65, 66, 67),
    "guitar ensemble": (24,),
    "vibraphone": (11,),
    "marimba": (12,),
    "flute and strings": (73, 48),
    "oboe and organ": (68, 19),
    "trumpet and organ": (56, 19),
}
SOLOISTS = {
    "violin": (40,),
    "fiddle": (110,),
    "flute": (73,),
    "tin whistle": (78,),
    "accordion": (21,),
    "banjo": (105,),
    "guitar": (25,),
    "piano": (0,),
    "harmonica": (22,),
    "bagpipe": (109,),
    "clarinet": (71,),
    "harp": (46,),
    "music box": (10,),
    "marimba": (12,),
    "recorder": (74,),
    "dulcimer": (15,),
    "violin and cello": (40, 42),
    "flute and bassoon": (73, 70),
    "clarinet and guitar": (71, 24),
    "two pianos": (0, 0),
}


@dataclass(frozen=True)
class Piece:
    """The opening of a score: notes in quarter notes, a General-MIDI program a part, and what is known of it."""

    id: str
    title: str
    artist: str
    genre: str
    caption: str
    bpm: int
    programs: tuple[int, ...]
    notes: tuple[Note, ...]


def melody(notes: list[Note]) -> tuple[tuple[int, int], ...]:
    """Intervals and lengths of a part's first ten notes: equal for the same tune in another key or setting."""
    first = sorted((n for n in notes if n.part == 0), key=lambda n: (n.start, -n.pitch))[:11]
    return tuple((b.pitch - a.pitch, round(8 * a.length)) for a, b in pairwise(first))


def perform(notes: list[Note], rng: np.random.Generator) -> list[Note]:
    """The notes with a human's loudness and timing; a part plays up to 8 ms late or early at 120 bpm."""
    loud = rng.integers(72, 104)
    return [
        Note(
            max(0.0, n.start + float(rng.uniform(-0.016, 0.016))),
            0.95 * n.length,
            n.pitch,
            n.part,
            int(np.clip(loud + rng.integers(-8, 9) + (6 if n.start % 1 == 0 else 0), 1, 127)),
        )
        for n in notes
    ]


def arrange(
    id_: str, title: str, artist: str, genre: str, key: str, parts: list[list[Note]], rng: np.random.Generator
) -> Piece:
    """Draws tempo and instruments for a score; a single part may be doubled an octave below."""
    solo = len(parts) == 1
    names = SOLOISTS if solo else ENSEMBLES
    name = str(rng.choice(list(names)))
    programs = names[name]
    if solo and len(programs) == 2:
        parts = [parts[0], [Note(n.start, n.length, n.pitch - 12, 1, n.velocity) for n in parts[0]]]
    programs = tuple(programs[min(i, len(programs) - 1)] for i in range(len(parts)))
    bpm = int(rng.integers(84, FASTEST + 1) if solo else rng.integers(66, 109))
    pace = "slow" if bpm < 80 else "moderate" if bpm < 100 else "lively"
    caption = f"{title}, {genre} by {artist.split(' (')[0]} in {key}, {name}, {pace}, {bpm} bpm"
    notes = perform([n for part in parts for n in part], rng)
    return Piece(id_, title, artist, genre, caption, bpm, programs, tuple(notes))


def _music21() -> Any:
    try:
        import music21
    except ImportError as error:
        raise SystemExit("the ladder's scores come from music21: pip install 'encore-music[ladder]'") from error
    return music21


def _title(path: Path, score: Any) -> tuple[str, str]:
    """Title, and form where the title says it: `ARKANSAS TRAVELLER -- REEL`."""
    if path.suffix == ".mxl" and path.stem.startswith("bwv"):
        return f"BWV {path.stem[3:]}", ""
    if path.stem.startswith("madrigal"):
        return f"Madrigal {path.stem.split('.', 1)[1]}", ""
    name, *forms = re.split(r"\s+-+\s+", str(score.metadata.title or path.stem))
    form = forms[-1].lower().strip(" .,:") if forms else ""
    return capwords(name).strip(" .,:"), form if form in DANCES else "tune"


def read(path: Path, quarters: float) -> tuple[str, str, str, list[list[Note]]] | None:
    """Title, form, key and the parts' notes of a score's first `quarters`; None where it has not enough to play."""
    m21 = _music21()
    score = m21.converter.parse(path, forceSource=True)
    if isinstance(score, m21.stream.Opus) or not score.parts or len(score.parts) > 6:
        return None
    parts = []
    for number, part in enumerate(score.parts):
        played = [n for n in part.stripTies().flatten().notes if n.quarterLength > 0 and n.offset < quarters]
        parts.append(
            [Note(float(n.offset), float(n.quarterLength), int(p.midi), number, 90) for n in played for p in n.pitches]
        )
    if score.duration.quarterLength < quarters or sum(map(len, parts)) < 16 or len(parts[0]) < 8:
        return None
    key = score.analyze("key")
    title, form = _title(path, score)
    return title, form, f"{key.tonic.name.replace('-', ' flat').replace('#', ' sharp')} {key.mode}", parts


def pieces(count: int, quarters: float, seed: int) -> Iterator[Piece]:
    """`count` openings of different pieces in random order, no two with the same melody."""
    m21 = _music21()
    root = Path(m21.__file__).parent / "corpus"
    rng = np.random.default_rng(seed)
    waiting = {
        name: [p for p in rng.permutation(sorted((root / name).iterdir())).tolist() if p.suffix in (".mxl", ".abc")]
        for name in REPERTORIES
    }
    names = rng.choice(list(REPERTORIES), count, p=[share for *_, share in REPERTORIES.values()])
    seen: set[tuple[tuple[int, int], ...]] = set()
    for name in names.tolist():
        while True:
            if not waiting[name]:
                raise RuntimeError(f"music21's corpus has too few pieces in {name}")
            path = waiting[name].pop()
            found = read(path, quarters)
            if found and melody([n for part in found[3] for n in part]) not in seen:
                break
        title, form, key, parts = found
        seen.add(melody([n for part in parts for n in part]))
        artist, genre, _ = REPERTORIES[name]
        yield arrange(path.stem.lower().replace(".", "_"), title, artist, form or genre, key, parts, rng)
