"""What a container declares about itself, and the error for a file that is not what it declares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO


class Damage(Exception):
    """The file is not whole; the text completes `the file …`."""


class Unsupported(Exception):
    """The file may be whole, but FFmpeg decodes another sound from it, without an error; the text completes `it …`."""


@dataclass(frozen=True)
class Container:
    """What a file says about itself.

    Args:
        kind: "wav", "flac", "mp3", "ogg", "aiff", "mp4" …; "other" where only FFmpeg's probing may recognise it.
        demuxer: FFmpeg's name of the demuxer that reads it; empty where its probing decides.
        frames: audio frames declared; None where the container doesn't say. An estimate is no declaration.
        rate: Hz; None where not read here.
        least: fewest audio frames that a decoder must give, as counted in the structure; 0 where nothing says how
            many there are; None where FFmpeg's demuxer is to be asked for the duration that is declared.
        start, end: the bytes that hold the audio, between tags and junk; an `end` of None is the file's end.
        md5, bits: FLAC's checksum of the decoded samples and their width, where it has one.
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
    """Up to `length` bytes from `position` on."""
    stream.seek(position)
    return stream.read(length)


def short(declared: int, size: int) -> Damage:
    """The error where a length leads beyond the file's end."""
    return Damage(f"declares {declared:,} bytes and has {size:,}")
