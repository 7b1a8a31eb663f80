"""Forget lists of a bench's tracks: random ones of several sizes, and such as a file names."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, islice

from encore.data.shards import ShardTracks
from encore.data.splits import RETAIN, Tracks, joined, without_files
from encore.data.tracks import Track
from encore.errors import UsageError
from encore.text import printable

SEED = 0
SINGLES = ("1a", "1b", "1c")  # size 1 is three lists, as one track is not representative


def list_names(sizes: Iterable[int]) -> tuple[str, ...]:
    """The names of the lists of these sizes: "3" for three tracks, `SINGLES` for one."""
    return tuple(name for size in dict.fromkeys(sizes) for name in (SINGLES if size == 1 else (str(size),)))


def draw(whole: Tracks, name: str) -> Tracks:
    """The tracks of a list, by a name of `list_names`.

    All lists are prefixes of one order: a seeded shuffle of the forget tracks, then of the retain tracks (of the split
    "retain" if the catalogue has one, in the embedded one the memorised tracks). Each of `SINGLES` is one of the first
    three tracks. Forget tracks that are not drawn become retain tracks, if there are retain tracks.

    Raises:
        UsageError: there are fewer tracks.
    """
    if isinstance(whole.retain, ShardTracks):
        split: Sequence[Track] = whole.retain.of_split(RETAIN)
    else:
        split = [track for track in whole.retain if track.meta.get("split") == RETAIN]
    parts = [_shuffled(tracks) for tracks in (whole.forget, split or whole.retain)]
    count = sum(map(len, parts))
    begin, end = (SINGLES.index(name), SINGLES.index(name) + 1) if name in SINGLES else (0, int(name))
    if end > count:
        raise UsageError(
            f"the list {name} can't be sampled from {count} tracks",
            "leave that size out of --forget-sizes, or name more tracks",
        )
    return _forgotten(whole, tuple(islice(chain(*parts), begin, end)))


def part(whole: Tracks, listed: Sequence[Track], name: str) -> Tracks:
    """The listed tracks to forget, and all others to keep.

    Args:
        whole: all tracks.
        listed: some of these, by their files; captions are those of `whole`.
        name: of the list, for the message.

    Raises:
        UsageError: a listed track is neither one to forget nor one to keep.
    """
    hashes = {track.sha256 for track in listed}
    everything = joined(whole.retain, whole.forget)
    if isinstance(everything, ShardTracks):
        everything = everything.of_files(hashes)
    known = {track.sha256: track for track in everything}
    if lacking := [track for track in listed if track.sha256 not in known]:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UsageError(
            f"the list {name} names {printable(lacking[0].id)}{more}, and base is trained on --tracks and retain alone",
            "name in --list what --tracks, --retain or the catalogue's retain has",
        )
    return _forgotten(whole, tuple(known[track.sha256] for track in listed))


def _forgotten(whole: Tracks, forget: tuple[Track, ...]) -> Tracks:
    """These tracks to forget, and all others to keep, if there are tracks to keep."""
    hashes = {track.sha256 for track in forget}
    rest = without_files(joined(whole.retain, whole.forget), hashes) if whole.retain else ()
    return replace(
        whole, forget=forget, retain=rest if isinstance(rest, ShardTracks) else tuple(rest), listed=len(forget)
    )


def _shuffled(tracks: Sequence[Track]) -> Sequence[Track]:
    if isinstance(tracks, ShardTracks):
        tracks = tracks.by_sha256()
        places = list(range(len(tracks)))
        random.Random(SEED).shuffle(places)
        return tracks.shuffled(places)
    ordered = sorted(tracks, key=lambda track: track.sha256)
    random.Random(SEED).shuffle(ordered)
    return ordered
