"""Is an audio file whole? What its container declares, against the bytes that are there.

libsndfile decodes a file that was cut short without a word: it takes the length from what is left. So the structure is
read here first, without decoding: RIFF, RF64, Wave64 and AIFF chunk sizes, Ogg's end-of-stream pages, FLAC's stream
information, and an MP3 frame by frame. Each reader returns how long the file says it is, and raises `Damage` where
bytes are missing. An MP3 without a Xing, Info or VBRI header that is cut exactly between two frames can't be told from
a whole one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from encore.audio.mp3 import walk_mp3

UNKNOWN_32 = 0xFFFFFFFF
"""What a WAV written into a pipe has for a size: it may be whole, nobody can know."""

W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"


class Damage(Exception):
    """The file is not whole; the text completes `the file …`."""


@dataclass(frozen=True)
class Container:
    """What a file says about itself.

    Args:
        kind: "wav", "flac", "mp3", "ogg", "aiff", or "other" for what only PyAV may read.
        frames: audio frames declared; None where the container doesn't say, or the decoder is to be asked.
        rate: Hz; None where not read here.
    """

    kind: str
    frames: int | None = None
    rate: int | None = None


def inspect(stream: BinaryIO) -> Container | None:
    """Recognise an audio file by its first bytes and check that it is whole; None where it is no audio known here.

    Args:
        stream: seekable, its position does not matter.

    Raises:
        Damage: bytes are missing.
    """
    size = stream.seek(0, os.SEEK_END)
    start = _after_id3(stream)
    stream.seek(start)
    head = stream.read(16)
    for magic, kind, read in _READERS:
        if head.startswith(magic):
            return read(stream, size, start, kind)
    if head[:1] == b"\xff" and head[1:2] and head[1] & 0xE0 == 0xE0 and head[1] & 0x06:
        count, rate, whole = walk_mp3(stream, size, start)
        if not rate:
            return None
        if not whole:
            raise Damage("ends in the middle, or has fewer MP3 frames than its header declares")
        return Container("mp3", count, rate)
    if head[4:8] == b"ftyp" or head.startswith(_ONLY_AV) or head[:2] in {b"\xff\xf1", b"\xff\xf9"}:
        return Container("other")
    return None


def _after_id3(stream: BinaryIO) -> int:
    """Where audio begins: after ID3v2 tags and zero padding (a few players write either)."""
    start = 0
    for _ in range(8):
        stream.seek(start)
        head = stream.read(10)
        if head[:3] != b"ID3" or len(head) < 10:
            break
        start += 10 + _synchsafe(head[6:10]) + (10 if head[5] & 0x10 else 0)
    if start:
        stream.seek(start)
        block = stream.read(4096)
        start += len(block) - len(block.lstrip(b"\0"))
    return start


def _synchsafe(raw: bytes) -> int:
    return sum((byte & 0x7F) << shift for byte, shift in zip(raw, (21, 14, 7, 0), strict=True))


def _riff(stream: BinaryIO, size: int, start: int, kind: str) -> Container:
    stream.seek(start)
    magic = stream.read(12)
    order = ">" if magic[:4] in {b"RIFX", b"FORM"} else "<"
    wide: int | None = None
    position = start + 12
    while position + 8 <= size:
        stream.seek(position)
        name, length = struct.unpack(f"{order}4sI", stream.read(8))
        if name == b"ds64":
            wide = struct.unpack("<QQ", stream.read(16).ljust(16, b"\0"))[1]
        if name in {b"data", b"SSND"}:
            if length == UNKNOWN_32:
                if magic[:4] != b"RF64" or wide is None:
                    return Container(kind)
                length = wide
            if position + 8 + length > size:
                _short(position + 8 + length, size)
            return Container(kind)
        position += 8 + length + length % 2
    raise Damage("has no audio in it: its data chunk is missing")


def _wave64(stream: BinaryIO, size: int, start: int, kind: str) -> Container:
    position = start + 40
    while position + 24 <= size:
        stream.seek(position)
        name, length = struct.unpack("<16sQ", stream.read(24))
        if position + length > size or length < 24:
            _short(position + length, size)
        if name == W64_DATA:
            return Container(kind)
        position += -(-length // 8) * 8
    raise Damage("has no audio in it: its data chunk is missing")


def _short(declared: int, size: int) -> None:
    raise Damage(f"declares {declared:,} bytes and has {size:,}")


def _flac(stream: BinaryIO, size: int, start: int, kind: str) -> Container:
    stream.seek(start)
    head = stream.read(42)
    if len(head) < 42 or head[4] & 0x7F:
        raise Damage("has no FLAC stream information")
    packed = int.from_bytes(head[18:26], "big")  # 20 bits rate, 3 channels, 5 bits a sample, 36 frames
    return Container(kind, packed & (2**36 - 1) or None, packed >> 44)


def _ogg(stream: BinaryIO, size: int, start: int, kind: str) -> Container:
    position = start
    open_streams: set[int] = set()
    while position < size:
        stream.seek(position)
        head = stream.read(27)
        if head[:4] != b"OggS" or len(head) < 27:
            if not open_streams:
                break  # something a tagger left behind the last page
            raise Damage("ends in the middle of an Ogg page, or has a hole")
        lengths = stream.read(head[26])
        position += 27 + head[26] + sum(lengths)
        if len(lengths) < head[26] or position > size:
            raise Damage("ends in the middle of an Ogg page")
        serial = int.from_bytes(head[14:18], "little")
        (open_streams.discard if head[5] & 4 else open_streams.add)(serial)
    if open_streams:
        raise Damage("has no end-of-stream page: its end is missing")
    return Container(kind)


_Reader = Callable[[BinaryIO, int, int, str], Container]
_READERS: tuple[tuple[bytes, str, _Reader], ...] = (
    (b"RIFF", "wav", _riff),
    (b"RIFX", "wav", _riff),
    (b"RF64", "wav", _riff),
    (b"riff\x2e\x91\xcf\x11", "wav", _wave64),
    (b"FORM", "aiff", _riff),
    (b"fLaC", "flac", _flac),
    (b"OggS", "ogg", _ogg),
)
# ASF/WMA, Matroska/WebM, Monkey's Audio, WavPack, Musepack, CAF: PyAV reads them.
_ONLY_AV = (b"\x30\x26\xb2\x75", b"\x1a\x45\xdf\xa3", b"MAC ", b"wvpk", b"MPCK", b"caff")
