"""What a list or a catalogue comes down to: tracks, each with its file, its hash and its caption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from encore.errors import InputError


@dataclass(frozen=True)
class Piece:
    """A part of a track that is one clip, where clips are not its windows from the first sample on.

    Args:
        start: where it begins, in samples at the model's rate; between two samples where it is no whole number.
        samples: its length.
        nll: mean NLL per token under the base model.
        grid_nll: that of the whole track, cut at multiples of the model's window; None for a piece that is such a
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
        more_captions: others of the same file; whatever is done with a track is done with each of them.
        caption_source: where the captions come from, see `captions.Captions`.
        place: how messages call the line that names it: `list.txt, line 3`.
        sha256: of the file's bytes.
        line: 1-based line of the list it was named on; None where no list named it.
        source: that line's text.
        title, artist, isrc: where the catalogue or the tags know them; not escaped: see `text.printable`.
        meta: the catalogue's other columns.
        pieces: what its clips are cut from; without any they are its windows from the first sample on.
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

    @property
    def captions(self) -> tuple[str, ...]:
        """All its captions, `caption` first."""
        return (self.caption, *self.more_captions)

    def refusal(self, error: InputError) -> InputError:
        """An error about its file, with the line that names it."""
        return InputError(f"{self.place}: {error.message}" if self.place else error.message, error.hint)

    def with_captions(self, captions: Iterable[str]) -> Track:
        """The same track, with those of `captions` that it hasn't."""
        return replace(self, more_captions=tuple(dict.fromkeys((*self.captions, *captions)))[1:])


SOURCES = {
    "list": "the list",
    "catalogue": "the catalogue",
    "side-car": "side-car files",
    "title": "titles",
    "tags": "tags",
}


def caption_sources(tracks: Iterable[Track]) -> str:
    """`3 from the catalogue, 2 from tags`: where the captions of tracks come from."""

    def words(source: str) -> str:
        first, space, rest = source.partition(" ")
        return SOURCES.get(first, first or "elsewhere") + space + rest

    counts = Counter(words(track.caption_source) for track in tracks)
    return ", ".join(f"{count} from {source}" for source, count in counts.most_common())


@dataclass(frozen=True)
class Missing:
    """A line of a list or a catalogue that no track answers to, or none that can be used, and why in one sentence."""

    line: int
    source: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """What a list selects.

    Args:
        tracks: in the list's order, each file once.
        missing: lines without a track (only ever filled where that was asked for).
        notes: what a person may want to know, one sentence each: a track that is named twice, another encoding.
    """

    tracks: tuple[Track, ...]
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()
