"""Tags before and after audio: ID3v1, ID3v2, APE and Lyrics3, each of a declared length."""

from __future__ import annotations

import struct
from typing import BinaryIO

from encore.data.container_facts import read_at

ID3V1 = 128
"""Bytes of an ID3v1 tag at a file's end."""


def tag_length(stream: BinaryIO, position: int) -> int:
    """Bytes of the tag that begins at a position; 0 where none does."""
    head = read_at(stream, position, 32)
    if head[:3] == b"ID3" and len(head) >= 10 and head[3] < 0xFF and max(head[6:10]) < 0x80:
        length = 0
        for byte in head[6:10]:
            length = length << 7 | byte
        return 10 + length + (10 if head[5] & 0x10 else 0)
    if head[:8] == b"APETAGEX" and len(head) == 32:
        length, _, flags = struct.unpack("<III", head[12:24])
        header = bool(flags >> 29 & 1)  # this is the header; the length counts the items and the footer
        return 32 + length if header else 32
    if head[:4] == b"TAG+":
        return 227
    if head[:3] == b"TAG":
        return ID3V1
    if head[:11] == b"LYRICSBEGIN":
        return _lyrics(stream, position)
    return 0


def _lyrics(stream: BinaryIO, position: int) -> int:
    block = read_at(stream, position, 1 << 20)
    found = [at + 9 for at in (block.find(b"LYRICSEND"), block.find(b"LYRICS200")) if at >= 0]
    return min(found, default=0)


def after_tags(stream: BinaryIO, size: int) -> int:
    """First byte of the audio: after tags, and zeros that players write after them."""
    start = 0
    for _ in range(8):
        length = tag_length(stream, start)
        if not length or start + length > size:
            break
        start += length
        start += zeros(stream, start, 64 << 10)
    return start


def after_id3v2(stream: BinaryIO, size: int) -> int:
    """First byte after the leading ID3v2 tags."""
    start = 0
    while read_at(stream, start, 3) == b"ID3" and 0 < (length := tag_length(stream, start)) <= size - start:
        start += length
    return start


def before_tags(stream: BinaryIO, size: int, start: int) -> int:
    """End of the audio: before ID3v1, Lyrics3 and APE tags."""
    end = size
    while end > start:
        footer = read_at(stream, max(start, end - 32), 32)
        if end - start > ID3V1 and read_at(stream, end - ID3V1, 3) == b"TAG":
            end -= ID3V1
        elif footer[-9:] == b"LYRICS200" and footer[-15:-9].isdigit():
            end -= int(footer[-15:-9]) + 15
        elif footer[:8] == b"APETAGEX":
            length, _, flags = struct.unpack("<III", footer[12:24])
            end -= max(32, length) + (32 if flags >> 31 else 0)
        else:
            return end
    return size


def zeros(stream: BinaryIO, position: int, most: int) -> int:
    """Number of consecutive zero bytes at a position."""
    block = read_at(stream, position, most)
    return len(block) - len(block.lstrip(b"\0"))
