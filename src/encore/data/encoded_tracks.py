"""Tracks with their clips: in memory, or read from shards when they are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload
from weakref import WeakValueDictionary

import numpy as np

from encore.api import Clip
from encore.api.data import LazyClips
from encore.data.file_info import Decoding
from encore.data.shards import ShardIndex, ShardTrack, ShardTracks
from encore.data.tracks import Track
from encore.errors import InputError
from encore.text import printable


@dataclass(frozen=True)
class EncodedTrack:
    """A track with its clips.

    Args:
        track: the track.
        clips: one per caption and window (or piece): the windows of the first caption, then those of the next.
        decoding: result of decoding its file.
    """

    track: Track
    clips: tuple[Clip, ...]
    decoding: Decoding

    @property
    def pcm_sha256(self) -> str:
        """Hash of the decoded samples."""
        return self.decoding.sha256_pcm

    @property
    def seconds(self) -> float:
        """Decoded length."""
        return self.decoding.seconds


def encoded_in(index: ShardIndex, track: Track) -> EncodedTrack:
    """A track with its clips from the shards, under its own captions.

    Raises:
        InputError: it is not in the shards, or they are damaged.
    """
    entry = index.of_file(track.sha256)
    if entry is None:
        raise InputError(
            f"{printable(track.id)} is not in the shards in {printable(index.folder)}",
            "were they written again from another catalogue?",
        )
    return _encoded(index, entry, track)


def _encoded(index: ShardIndex, entry: ShardTrack, track: Track) -> EncodedTrack:
    windows = [index.codes(entry, i) for i in range(len(entry.windows))]
    clips = tuple(Clip(track.id, caption, codes) for caption in track.captions for codes in windows)
    return EncodedTrack(track, clips, entry.decoding)


class StreamedTracks(Sequence[EncodedTrack]):
    """Encoded tracks of a folder of shards, each read when it is accessed.

    Args:
        tracks: the tracks; their codes are those of the model.
    """

    def __init__(self, tracks: ShardTracks) -> None:
        self.tracks = tracks

    def __len__(self) -> int:
        return len(self.tracks)

    @overload
    def __getitem__(self, place: int) -> EncodedTrack: ...
    @overload
    def __getitem__(self, place: slice) -> StreamedTracks: ...
    def __getitem__(self, place: int | slice) -> EncodedTrack | StreamedTracks:
        if isinstance(place, slice):
            return StreamedTracks(self.tracks[place])
        entry = self.tracks.entry(place)
        return _encoded(self.tracks.shards, entry, entry.track)

    def facts(self, place: int) -> EncodedTrack:
        """A track and its decoding result without clips: no codes are read."""
        entry = self.tracks.entry(place)
        return EncodedTrack(entry.track, (), entry.decoding)

    @property
    def clips(self) -> StreamedClips:
        """The clips of all tracks, in order."""
        return StreamedClips(self.tracks)


class StreamedClips(LazyClips):
    """The clips of tracks in shards, each read when it is accessed.

    As long as a clip is in use, another access to it gives the same object, since clips are equal only to themselves.

    Args:
        tracks: the tracks; their codes are those of the model.
    """

    def __init__(self, tracks: ShardTracks) -> None:
        self._tracks = tracks
        rows = tracks.shards.rows("SELECT number, clips FROM tracks ORDER BY number")
        counts = np.array(rows, np.int64).reshape(-1, 2)
        places = np.searchsorted(counts[:, 0], tracks.numbers)
        self._ends = counts[places, 1].cumsum()
        self._in_use: WeakValueDictionary[int, Clip] = WeakValueDictionary()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def clip(self, place: int) -> Clip:
        """The clip at a place; the same object as before, as long as that is in use."""
        clip = self._in_use.get(place)
        if clip is None:
            clip = self._in_use[place] = self._read(place)
        return clip

    def _read(self, place: int) -> Clip:
        row = int(np.searchsorted(self._ends, place, side="right"))
        entry = self._tracks.entry(row)
        caption, window = divmod(place - (int(self._ends[row - 1]) if row else 0), len(entry.windows))
        return Clip(entry.track.id, entry.track.captions[caption], self._tracks.shards.codes(entry, window))


def clips_of(tracks: Sequence[EncodedTrack]) -> Sequence[Clip]:
    """All clips of some tracks, in order; those of tracks in shards are read when they are used."""
    if isinstance(tracks, StreamedTracks):
        return tracks.clips
    return [clip for track in tracks for clip in track.clips]
