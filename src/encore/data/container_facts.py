"""What a container declares, and the errors for files that contradict it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO


class Damage(Exception):
    """The file is incomplete or damaged; the text completes `the file …`."""


class Unsupported(Exception):
    """The file may be intact, but FFmpeg silently decodes it wrongly; the text completes `it …`."""


@dataclass(frozen=True)
class Container:
    """What a file declares.

    Args:
        kind: "wav", "flac", "mp3", "ogg", "aiff", "mp4" …; "other" where only FFmpeg's probing may recognise it.
        demuxer: FFmpeg's name of the demuxer that reads it; empty where its probing decides.
        frames: declared number of audio frames; None without an exact declaration.
        rate: Hz; None where not read here.
        least: fewest audio frames that a decoder must return, as counted in the structure; 0 where unknown; None where
            it follows from the duration that FFmpeg's demuxer reports.
        start: first byte of the audio, after tags and junk.
        end: byte after the audio; None is the file's end.
        md5: FLAC's checksum of the decoded samples; empty without one.
        bits: FLAC's sample width, where `md5` is set.
    """

    kind: str
    demuxer: str = ""
    frames: int | None = None
    rate: int | None = None
    least: int | None = 0
    start: int = 0
    end: int | None = None
    md5: bytes = b""
    bits: int = 0


def read_at(stream: BinaryIO, position: int, length: int) -> bytes:
    """Up to `length` bytes at `position`."""
    stream.seek(position)
    return stream.read(length)


def short(declared: int, size: int) -> Damage:
    """The error for a length that reaches beyond the file's end."""
    return Damage(f"declares {declared:,} bytes and has {size:,}")
