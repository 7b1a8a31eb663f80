"""What `encore forget` and `encore eval` show of tracks: each file, how much of it was read, and its captions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from encore.cli import console

if TYPE_CHECKING:
    from encore.data.encode import EncodedTrack
    from encore.data.tracks import Missing, Track

SHOWN = 60  # characters of a caption


def show_tracks(heard: Iterable[EncodedTrack], missing: Iterable[Missing] = ()) -> None:
    """A table with a row a track: the list's line, the seconds read, the caption and its origin, the file."""
    rows: list[tuple[object, ...]] = [
        (
            one.track.line,
            one.track.id,
            _seconds(one),
            _captions(one.track),
            one.track.caption_source,
            one.track.path,
            one.track.sha256[:16],
        )
        for one in heard
    ]
    rows += [(gone.line, gone.source, "", f"not found: {gone.reason}", "", "", "") for gone in missing]
    headers = ["line", "track", "seconds", "caption", "caption from", "file", "sha256"]
    console.table(headers, rows, right=["line", "seconds"])


def note_sets(sets: Mapping[Any, Sequence[EncodedTrack]]) -> None:
    """A line per set, on stderr: how much was read, and where the captions come from."""
    from encore.data.tracks import caption_sources

    for name, heard in sets.items():
        if heard:
            seconds = sum(one.seconds for one in heard)
            sources = caption_sources(one.track for one in heard)
            count = "1 track" if len(heard) == 1 else f"{len(heard):,} tracks"
            console.note(f"{name}: {seconds:,.1f} s read of {count}; captions: {sources}")


def _seconds(heard: EncodedTrack) -> str:
    """`5.0`, or `5.0 of 5.2` where the file declares another length."""
    read, facts = f"{heard.seconds:.1f}", heard.decoding
    declared = read if facts.declared is None else f"{facts.declared / facts.rate:.1f}"
    return read if declared == read else f"{read} of {declared}"


def _captions(track: Track) -> str:
    """The caption, shortened, and how many more there are."""
    text = track.caption if len(track.caption) <= SHOWN else track.caption[: SHOWN - 1] + "…"
    return text + (f" (and {len(track.more_captions)} more)" if track.more_captions else "")
