"""Lists of tracks of several sizes, drawn so that the larger ones hold the smaller ones."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from encore.data.splits import RETAIN, Tracks
from encore.data.tracks import Track
from encore.errors import UsageError

SEED = 0
SINGLES = ("1a", "1b", "1c")  # one track says little: size 1 is three lists


def names_of(sizes: Iterable[int]) -> tuple[str, ...]:
    """The names of the lists of these sizes: "3" for three tracks, `SINGLES` for one."""
    return tuple(name for size in dict.fromkeys(sizes) for name in (SINGLES if size == 1 else (str(size),)))


def draw(whole: Tracks, name: str) -> Tracks:
    """The list of a name that `names_of` gives.

    The order is that of one seeded shuffle of the list, then of the tracks to keep: of the split "retain" where the
    catalogue has one (those that the model has memorised, in the embedded one), else of all. A list is the beginning of
    it; each of `SINGLES` is one of its first three tracks. What the list names and was not drawn is kept, where
    tracks are kept at all.

    Args:
        whole: the list's tracks, and the others.

    Raises:
        UsageError: there are fewer tracks.
    """
    split = [track for track in whole.retain if track.meta.get("split") == RETAIN]
    order = [track for tracks in (whole.forget, split or whole.retain) for track in _shuffled(tracks)]
    begin, end = (SINGLES.index(name), SINGLES.index(name) + 1) if name in SINGLES else (0, int(name))
    if end > len(order):
        raise UsageError(
            f"a list of {end if begin == 0 else 1} can't be drawn from {len(order)} tracks (list {name})",
            "leave that size out of --forget-sizes, or name more tracks",
        )
    drawn = {track.sha256 for track in order[begin:end]}
    kept = (*whole.retain, *whole.forget) if whole.retain else ()
    return replace(
        whole, forget=tuple(order[begin:end]), retain=tuple(track for track in kept if track.sha256 not in drawn),
        listed=end - begin,
    )  # fmt: skip


def _shuffled(tracks: Iterable[Track]) -> list[Track]:
    ordered = sorted(tracks, key=lambda track: track.sha256)
    random.Random(SEED).shuffle(ordered)
    return ordered
