"""Containers of small linked pieces: FLAC's header, Ogg pages, Matroska elements, WavPack blocks."""

from __future__ import annotations

import hashlib
import zlib
from typing import BinaryIO

from encore.data.container_facts import Container, Damage, Unsupported, read_at, short
from encore.data.tags import before_tags, tag_length


def flac(stream: BinaryIO, size: int, start: int) -> Container:
    """FLAC's stream information (RFC 9639, 8.2): the length, and an MD5 of all samples; zeros where not known."""
    head = read_at(stream, start, 42)
    if len(head) < 42 or head[4] & 0x7F:
        raise Damage("has no FLAC stream information")
    packed = int.from_bytes(head[18:26], "big")  # 20 bits rate, 3 channels, 5 bits a sample, 36 frames
    frames = packed & (2**36 - 1) or None
    bits = (packed >> 36 & 31) + 1
    md5 = head[26:42] if any(head[26:42]) else b""
    return Container("flac", "flac", frames, packed >> 44, 0, start, before_tags(stream, size, start), md5, bits)


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_checksum(page: bytes) -> int:
    """CRC-32 as Ogg takes it (RFC 3533): zlib's polynomial, its bits the other way round, from 0 and not inverted."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def ogg(stream: BinaryIO, size: int, start: int) -> Container:
    """Ogg (RFC 3533): pages that follow each other, numbered, each with a checksum, up to each stream's last."""
    position = start
    numbers: dict[int, int] = {}  # of streams that have not ended: the next page's number
    headers = _Headers()
    while position < size:
        head = read_at(stream, position, 27)
        if head[:4] != b"OggS" or len(head) < 27:
            tag = tag_length(stream, position)
            if not numbers and (tag or not head.strip(b"\0")):
                break  # something a tagger left behind the last page
            raise Damage("ends in the middle of an Ogg page, or has a hole")
        lengths = stream.read(head[26])
        body = stream.read(sum(lengths))
        if len(lengths) < head[26] or len(body) < sum(lengths):
            raise Damage("ends in the middle of an Ogg page")
        serial, number, checksum = (int.from_bytes(head[at : at + 4], "little") for at in (14, 18, 22))
        if checksum != ogg_checksum(head[:22] + b"\0\0\0\0" + head[26:] + lengths + body):
            raise Damage("has an Ogg page with a wrong checksum")
        begins, ends = head[5] & 2, head[5] & 4
        if begins:
            headers.begin(serial, chained=not numbers)
        headers.add(serial, lengths, body)
        if not begins and numbers.get(serial, number) != number:
            raise Damage("lacks an Ogg page in the middle")
        if ends:
            numbers.pop(serial, None)
        else:
            numbers[serial] = number + 1
        position += len(head) + len(lengths) + len(body)
    if numbers:
        raise Damage("has no end-of-stream page: its end is missing")
    return Container("ogg", "ogg", least=None, start=start, end=position)


class _Headers:
    """The setups of the Vorbis streams of one file: FFmpeg goes on with the first of streams behind each other."""

    def __init__(self) -> None:
        self.open: dict[int, tuple[bytes, int]] = {}  # by serial number: bytes and packets so far
        self.first: set[bytes] | None = None  # setups of the streams that the file begins with
        self.latest: set[bytes] = set()

    def begin(self, serial: int, *, chained: bool) -> None:
        """A stream begins; with `chained`, behind the end of all others."""
        if chained:
            self.first, self.latest = self.first or self.latest or None, set()
        self.open[serial] = b"", 0

    def add(self, serial: int, lengths: bytes, body: bytes) -> None:
        """The next page of a stream.

        Raises:
            Unsupported: its three header packets are of another setup than those that the file began with.
        """
        if serial not in self.open:
            return
        data, packets = self.open.pop(serial)
        data, packets = data + body, packets + sum(length < 255 for length in lengths)
        if not data.startswith(b"\1vorbis"):
            return
        if packets < 3:
            self.open[serial] = data, packets
            return
        setup = data[:30] + data[data.find(b"\5vorbis") :]  # without the comments
        self.latest.add(hashlib.sha256(setup).digest())
        if self.first and not self.latest <= self.first:
            raise Unsupported("is several Vorbis streams of different settings, of which FFmpeg decodes the first")


_EBML, _SEGMENT, _CLUSTER, _GROUP = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0xA0
_ANYWHERE = {0xEC, 0xBF}  # Void, CRC-32
_TOP = {_EBML.to_bytes(4, "big"), _SEGMENT.to_bytes(4, "big")}
_CHILDREN = {
    # SeekHead, Info, Tracks, Cluster, Cues, Attachments, Chapters, Tags
    _SEGMENT: {0x114D9B74, 0x1549A966, 0x1654AE6B, _CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367},
    # Timestamp, SilentTracks, Position, PrevSize, SimpleBlock, BlockGroup, EncryptedBlock
    _CLUSTER: {0xE7, 0x5854, 0xA7, 0xAB, 0xA3, _GROUP, 0xAF},
    # Block, BlockVirtual, BlockAdditions, BlockDuration, Reference{Priority,Block,Virtual}, CodecState, DiscardPadding,
    # Slices, ReferenceFrame
    _GROUP: {0xA1, 0xA2, 0x75A1, 0x9B, 0xFA, 0xFB, 0xFD, 0xA4, 0x75A2, 0x8E, 0xC8},
}
"""Matroska's elements (RFC 9559) that are walked into, and what may be in them."""


def matroska(stream: BinaryIO, size: int, start: int) -> Container:
    """Matroska and WebM: elements that fill each other, down to the blocks of a cluster."""
    position, segments = start, 0
    while position < size:
        name, body, end = _element(stream, position, size)
        if name == _SEGMENT:
            segments += 1
            position = _walk(stream, name, body, end, size)
            if end is not None and read_at(stream, position, 4) not in _TOP:
                break  # what follows a whole segment is not ours
        elif name in _ANYWHERE | {_EBML} and end is not None:
            position = end
        elif segments:
            break  # what follows a whole segment is not ours
        else:
            raise Damage("has something in it that is no Matroska element")
    if not segments:
        raise Damage("has no Matroska segment in it")
    return Container("matroska", "matroska", least=None, start=start)


def _walk(stream: BinaryIO, parent: int, position: int, end: int | None, size: int) -> int:
    """Go through a parent's children; where it has no length, up to the first element that is no child."""
    while position < (size if end is None else end):
        name, body, stop = _element(stream, position, size)
        if name not in _CHILDREN[parent] | _ANYWHERE:
            if end is None:
                return position
            raise Damage("has a hole, or something in it that is no Matroska element")
        if name in _CHILDREN:
            position = _walk(stream, name, body, stop, size)
        elif stop is None:
            raise Damage("has a Matroska element of unknown length")
        else:
            position = stop
        if end is not None and position > end:
            raise Damage("has Matroska elements whose lengths contradict each other")
    return position


def _element(stream: BinaryIO, position: int, size: int) -> tuple[int, int, int | None]:
    """An element's name, and the start and end of its content (None: unknown length)."""
    raw = read_at(stream, position, 12)
    wide = 9 - raw[0].bit_length() if raw and raw[0] else 0
    if not 1 <= wide <= 4 or len(raw) <= wide or not raw[wide]:
        raise Damage("has a hole, or something in it that is no Matroska element")
    count = 9 - raw[wide].bit_length()
    length = int.from_bytes(raw[wide : wide + count], "big") & (1 << 7 * count) - 1
    body = position + wide + count
    if length == (1 << 7 * count) - 1:
        return int.from_bytes(raw[:wide], "big"), body, None
    if body + length > size:
        raise short(body + length, size)
    return int.from_bytes(raw[:wide], "big"), body, body + length


def wavpack(stream: BinaryIO, size: int, start: int) -> Container:
    """WavPack (format 4 and 5): blocks that follow each other; each says how many samples it and the whole have."""
    end = before_tags(stream, size, start)
    position, count, total = start, 0, None
    while position < end:
        head = read_at(stream, position, 32)
        if head[:4] != b"wvpk" or len(head) < 32:
            raise Damage("has a hole, or ends in the middle of a WavPack block")
        length, declared, samples, flags = (int.from_bytes(head[at : at + 4], "little") for at in (4, 12, 20, 24))
        if position + 8 + length > end:
            raise short(position + 8 + length, size)
        if total is None and declared != 0xFFFFFFFF:
            total = declared | head[11] << 32
        count += samples if flags & 0x800 else 0  # the first block of several for one stretch of time
        position += 8 + length
    if total is not None and count != total:
        raise Damage(f"declares {total:,} frames and holds {count:,}")
    return Container("wavpack", "wv", total, start=start, end=end)
