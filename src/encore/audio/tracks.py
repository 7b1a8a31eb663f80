"""What a list or a catalogue comes down to: tracks, each with its file, its hash and its caption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Track:
    """One audio item with its caption.

    Args:
        id: unique in its selection, printable; the catalogue's id, else the path below the list's folder.
        path: real path of a regular file inside an allowed folder.
        caption: one line, never empty.
        sha256: of the file's bytes.
        line: 1-based line of the list it was named on; None where no list named it.
        source: that line's text.
        title, artist, isrc: where the catalogue or the tags know them; not escaped: see `text.printable`.
        meta: the catalogue's other columns.
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


@dataclass(frozen=True)
class Missing:
    """A line of a list that no track answers to, and why in one sentence."""

    line: int
    source: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """What a list selects.

    Args:
        tracks: in the list's order, each file once.
        missing: lines without a track (only ever filled with `allow_missing`).
        notes: what a person may want to know, one sentence each: a track that is named twice.
    """

    tracks: tuple[Track, ...]
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()
