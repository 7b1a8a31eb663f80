"""Check that an audio file is complete: compare the lengths and checksums its container declares with its bytes.

FFmpeg silently skips bytes that are not audio, and stops at the file's end, so the structure is checked here first,
without decoding. Rules for all containers: an element of declared length must lie inside the file, the next one must
begin at its end, and repeated declarations must agree. Placeholders of writers that could not seek, and estimates of
decoders, are not declarations. An MP3 without a Xing, Info or VBRI header that is cut exactly between two frames can't
be told from a complete one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import BinaryIO

from encore.data import chunk_containers, page_containers
from encore.data.container_facts import Container, Damage, read_at
from encore.data.mpeg_frames import JUNK, mpeg_audio
from encore.data.tags import after_tags

__all__ = ["Container", "Damage", "inspect"]

_Reader = Callable[[BinaryIO, int, int], Container]
_READERS: tuple[tuple[bytes, _Reader], ...] = (
    (b"RIFF", chunk_containers.riff),
    (b"RIFX", chunk_containers.riff),
    (b"RF64", chunk_containers.riff),
    (b"BW64", chunk_containers.riff),
    (b"riff\x2e\x91\xcf\x11", chunk_containers.wave64),
    (b"FORM", chunk_containers.aiff),
    (b".snd", chunk_containers.au),
    (b"caff", chunk_containers.caf),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", chunk_containers.asf),
    (b"fLaC", page_containers.flac),
    (b"OggS", page_containers.ogg),
    (b"\x1a\x45\xdf\xa3", page_containers.matroska),
    (b"wvpk", page_containers.wavpack),
)
_ATOMS = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}


def inspect(stream: BinaryIO) -> Container:
    """Recognise an audio file by its first bytes and check that it is complete.

    Args:
        stream: seekable, at any position.

    Raises:
        Damage: bytes are missing, or its declarations contradict each other.
    """
    size = stream.seek(0, os.SEEK_END)
    start = after_tags(stream, size)
    head = read_at(stream, start, 16)
    try:
        for magic, read in _READERS:
            if head.startswith(magic):
                return read(stream, size, start)
        if head[4:8] in _ATOMS:
            return chunk_containers.mp4(stream, size, start)
    except (struct.error, OverflowError) as error:  # a truncated header, or an impossible length
        raise Damage("has an invalid header") from error
    return mpeg_audio(stream, size, start) or Container("other", least=None, start=start)


def behind_junk(stream: BinaryIO) -> Container | None:
    """An MPEG audio stream after bytes that are no tag; None without one, or with junk at both ends (an archive).

    Raises:
        Damage: as in `inspect`.
    """
    size = stream.seek(0, os.SEEK_END)
    return mpeg_audio(stream, size, after_tags(stream, size), junk=JUNK)
