"""The tables of tracks of `encore forget` and `encore eval`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from encore.cli import console
from encore.text import counted

if TYPE_CHECKING:
    from encore.data.encoded_tracks import EncodedTrack
    from encore.data.tracks import Missing, Track

SHOWN = 60  # characters of a caption


def show_tracks(tracks: Iterable[EncodedTrack], missing: Iterable[Missing] = ()) -> None:
    """Print a table with one row per track: line of the list, seconds read, caption and its source, file."""
    rows: list[tuple[object, ...]] = [
        (
            item.track.line, item.track.id, _seconds(item), _captions(item.track), item.track.caption_source,
            item.track.path, item.track.sha256[:16],
        )
        for item in tracks
    ]  # fmt: skip
    rows += [(item.line, item.source, "", f"not found: {item.reason}", "", "", "") for item in missing]
    headers = ["line", "track", "seconds", "caption", "caption from", "file", "sha256"]
    console.table(headers, rows, right=["line", "seconds"])


def note_sets(sets: Mapping[Any, Sequence[EncodedTrack]]) -> None:
    """Print one line per set on stderr: seconds read, and the sources of the captions."""
    from encore.data.encoded_tracks import StreamedTracks
    from encore.data.tracks import caption_sources

    for name, tracks in sets.items():
        if isinstance(tracks, StreamedTracks):
            clips = counted(len(tracks.clips), "clip")
            console.note(f"{name}: {counted(len(tracks), 'track')}, {clips} in {tracks.tracks.shards.folder}")
        elif tracks:
            seconds = sum(item.seconds for item in tracks)
            sources = caption_sources(item.track for item in tracks)
            count = counted(len(tracks), "track")
            console.note(f"{name}: {seconds:,.1f} s read of {count}; captions: {sources}")


def _seconds(item: EncodedTrack) -> str:
    """`5.0`, or `5.0 of 5.2` if the file declares another length."""
    read, facts = f"{item.seconds:.1f}", item.decoding
    declared = read if facts.declared is None else f"{facts.declared / facts.rate:.1f}"
    return read if declared == read else f"{read} of {declared}"


def _captions(track: Track) -> str:
    """The shortened caption, and the number of further captions."""
    text = track.caption if len(track.caption) <= SHOWN else track.caption[: SHOWN - 1] + "…"
    return text + (f" (and {len(track.more_captions)} more)" if track.more_captions else "")
