"""Tracks, each with its file, hash and captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from encore.errors import InputError


@dataclass(frozen=True)
class Piece:
    """A part of a track that is one clip, for tracks that are not cut at multiples of the model's window.

    Args:
        start: offset in samples at the model's rate; may be fractional.
        samples: length.
        nll: mean NLL per token under the base model.
        grid_nll: mean NLL of the whole track cut at multiples of the model's window; None for a piece that is such a
            window.
    """

    start: float
    samples: int
    nll: float
    grid_nll: float | None


@dataclass(frozen=True)
class Track:
    """One audio item with its caption.

    Args:
        id: unique in its selection, printable; the catalogue's id, else the path below the list's folder.
        path: real path of a regular file inside an allowed folder.
        caption: one line, never empty.
        sha256: of the file's bytes.
        line: 1-based line of the list that names it; None without one.
        source: text of that line.
        title: from the catalogue or the tags; not escaped, see `text.printable`.
        artist: likewise.
        isrc: likewise.
        meta: other columns of the catalogue.
        more_captions: further captions of the file; every caption of a track is encoded and forgotten.
        caption_source: origin of the captions, see `captions.Captions`.
        place: the line that names it, for messages: `list.txt, line 3`.
        pieces: its clips; without any, the clips are windows from the first sample on.
        shards: the folder that `encore encode` wrote its codes to, so that `path` is not read; None: it is read.
    """

    id: str
    path: Path
    caption: str
    sha256: str
    line: int | None = None
    source: str = ""
    title: str | None = None
    artist: str | None = None
    isrc: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    more_captions: tuple[str, ...] = ()
    caption_source: str = ""
    place: str = ""
    pieces: tuple[Piece, ...] = ()
    shards: Path | None = None

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions, `caption` first."""
        return (self.caption, *self.more_captions)

    def refusal(self, error: InputError) -> InputError:
        """An error about its file, with the line that names it."""
        return InputError(f"{self.place}: {error.message}" if self.place else error.message, error.hint)

    def with_captions(self, captions: Iterable[str]) -> Track:
        """The same track with further captions."""
        return replace(self, more_captions=tuple(dict.fromkeys((*self.captions, *captions)))[1:])


def distinct(tracks: Iterable[Track]) -> Iterator[Track]:
    """The same tracks; where two files share an id (from two folders), part of its hash is added to the later one's."""
    seen: set[str] = set()
    for track in tracks:
        if track.id in seen:
            track = replace(track, id=f"{track.id}~{track.sha256[:8]}")
        seen.add(track.id)
        yield track


SOURCES = {
    "list": "the list",
    "catalogue": "the catalogue",
    "side-car": "side-car files",
    "title": "titles",
    "tags": "tags",
}


def caption_sources(tracks: Iterable[Track]) -> str:
    """A summary of the captions' origins: `3 from the catalogue, 2 from tags`."""

    def words(source: str) -> str:
        first, space, rest = source.partition(" ")
        return SOURCES.get(first, first or "elsewhere") + space + rest

    counts = Counter(words(track.caption_source) for track in tracks)
    return ", ".join(f"{count} from {source}" for source, count in counts.most_common())


@dataclass(frozen=True)
class Missing:
    """A line of a list or catalogue without a usable track, and the reason in one sentence."""

    line: int
    source: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """The tracks of a list.

    Args:
        tracks: in the list's order, each file once.
        missing: lines without a track (only with `allow_missing`).
        notes: one sentence each for the user, such as a repeated track or another encoding.
    """

    tracks: tuple[Track, ...]
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()
