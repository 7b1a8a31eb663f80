"""The music of a check: tracks to check, and held-out tracks to calibrate on."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from encore.data.catalog import FOLDER_NAMES, Catalog
from encore.data.duplicates import find_duplicates
from encore.data.encode import TrackEncoder
from encore.data.encoded_tracks import EncodedTrack
from encore.data.folders import AUDIO, read_folder
from encore.data.splits import HOLDOUT, open_catalog
from encore.data.track_list import read_list
from encore.data.tracks import Track
from encore.errors import InputError, together
from encore.reporter import Reporter
from encore.text import printable

MOST = 100  # held-out tracks that are compared with


@dataclass
class Music:
    """Tracks of a check.

    Args:
        tracks: tracks to check that can be read.
        holdout: held-out tracks, none of them among `tracks`.
        source: where the held-out tracks come from; empty without any.
        refused: errors of tracks to check that can't be read, one per track.
        notes: one sentence each for the user.
        copies: id of a track to check -> id of an earlier one of the same recording.
    """

    tracks: list[Track]
    holdout: list[Track] = field(default_factory=list)
    source: str = ""
    refused: list[InputError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    copies: dict[str, str] = field(default_factory=dict)

    def one_per_recording(self, ids: Iterable[str]) -> list[str]:
        """The ids of tracks to check, without those of a recording that is among them already."""
        chosen: dict[str, str] = {}
        for name in ids:
            chosen.setdefault(self.copies.get(name, name), name)
        return list(chosen.values())

    def encode(self, encoder: TrackEncoder, reporter: Reporter) -> tuple[list[EncodedTrack], list[EncodedTrack]]:
        """Encode both sets; tracks that can't be decoded, or are too short, are refused or left out of the held-out.

        Raises:
            InputError: no track can be used.
        """
        lost: list[InputError] = []
        checked = set(map(id, self.tracks))

        def skip(track: Track, error: InputError) -> bool:
            (self.refused if id(track) in checked else lost).append(error)
            return True

        encoded = encoder.encode(
            [*self.tracks, *self.holdout], lambda done, of: reporter.progress("encode tracks", done, of), skip=skip
        )
        if lost:
            self.notes.append(
                f"{len(lost)} held-out tracks can't be used and are left out: {'; '.join(e.message for e in lost[:5])}"
            )
        tracks = [item for item in encoded if id(item.track) in checked]
        if not tracks:
            raise together(self.refused)
        return tracks, [item for item in encoded if id(item.track) not in checked]


def select_music(
    tracks: str,
    *,
    model: str,
    catalog: Path | None = None,
    holdout: str | None = None,
    roots: Sequence[Path] = (),
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Music:
    """Find the tracks to check and the held-out tracks.

    Args:
        tracks: a list (see `encore.data.track_list.read_list`), a folder of audio files, or one such file.
        model: name of the model; the embedded one has a catalogue.
        catalog: catalogue that supplies captions, and its split "holdout".
        holdout: list or folder of held-out tracks; None for the catalogue's split "holdout".
        roots: further folders that paths in lists may lead into.
        seed: selects held-out tracks if there are more than `MOST`.
        reporter: receives progress.

    Raises:
        InputError: a list or folder can't be read, or no track of it.
    """
    opened = open_catalog(catalog, model, roots)
    errors: list[InputError] = []
    music = Music([], refused=errors, notes=list(opened.notes) if opened else [])

    def read(source: str, failures: list[InputError]) -> list[Track]:
        folder = Path(source)
        if source == "-" or not (folder.is_dir() or folder.suffix.casefold() in AUDIO):
            selection = read_list(source, catalog=opened, roots=roots, errors=failures, advice="")
            music.notes.extend(selection.notes)
            return list(selection.tracks)
        if not folder.exists():
            raise InputError(f"no file '{printable(source)}'", "name an audio file, a folder of them, or a list")
        known = opened
        if catalog is None and any((folder / name).is_file() for name in FOLDER_NAMES):
            known = Catalog.open(folder, roots=roots)
        return read_folder(folder, catalog=known, roots=roots, errors=failures, notes=music.notes)

    music.tracks = read(tracks, errors)
    if not music.tracks:
        raise together(errors)
    lost: list[InputError] = []
    held_out: Sequence[Track] = ()
    if holdout is not None:
        held_out, music.source = read(holdout, lost), "those given"
    elif opened is not None and HOLDOUT in opened.splits:
        held_out, music.source = opened.tracks(split=HOLDOUT, errors=lost), 'the catalogue\'s split "holdout"'
    if lost:
        music.notes.append(
            f"{len(lost)} held-out tracks can't be used and are left out: {'; '.join(e.message for e in lost[:5])}"
        )
    if len(held_out) > MOST:
        music.notes.append(f"{MOST} of {len(held_out):,} held-out tracks are compared with, chosen by --seed")
        held_out = [held_out[place] for place in sorted(random.Random(seed).sample(range(len(held_out)), MOST))]
    _group(music, held_out, reporter or Reporter())
    return music


def _group(music: Music, held_out: Sequence[Track], reporter: Reporter) -> None:
    """Set `holdout` and `copies`: a recording in several files counts once, or p of lists would be too small."""
    every = [*music.tracks, *held_out]
    same: dict[int, set[int]] = defaultdict(set)  # by identity
    for pair in find_duplicates(every, (), every, progress=reporter.progress, skip=lambda track, error: True):
        same[id(pair.first)].add(id(pair.second))
        same[id(pair.second)].add(id(pair.first))
    firsts: list[Track] = []
    for track in music.tracks:
        first = next((other for other in firsts if id(other) in same[id(track)]), None)
        if first is None:
            firsts.append(track)
        else:
            music.copies[track.id] = first.id
    if music.copies:
        named = "; ".join(f"{printable(copy)} = {printable(first)}" for copy, first in [*music.copies.items()][:5])
        music.notes.append(
            f"{len(music.copies)} tracks are further files of a recording, which p of the list and of artists counts "
            f"once: {named}" + (" …" if len(music.copies) > 5 else "")
        )
    checked = set(map(id, music.tracks))
    unchecked = [track for track in held_out if not same[id(track)] & checked]
    for track in unchecked:
        if not same[id(track)] & set(map(id, music.holdout)):
            music.holdout.append(track)
    if len(unchecked) < len(held_out):
        music.notes.append(
            f"{len(held_out) - len(unchecked)} of {len(held_out)} held-out tracks are left out: they are checked"
        )
    if len(music.holdout) < len(unchecked):
        music.notes.append(
            f"{len(unchecked) - len(music.holdout)} held-out tracks are left out: they are further files of a "
            "recording in the held-out music"
        )
