"""Check MP3 and AAC (ADTS) streams frame by frame, from header to header, without decoding.

ISO 11172-3 and 13818-3 (MPEG audio), ISO 13818-7 (ADTS). Neither has a container: decoders search for the next header
after an error, and silently skip missing or overwritten bytes. Here each frame must begin where the one before it ends;
tags may precede and follow them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from encore.data.container_facts import Container, Damage, read_at
from encore.data.tags import after_id3v2, before_tags, tag_length, zeros

_KBPS = {  # (MPEG-1?, layer); MPEG-2 and its half-rate extension 2.5 share a table
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_ADTS_RATES = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350)

JUNK = 64 << 10
"""Bytes searched for the first frame, as in FFmpeg."""

SURE = 4
"""Consecutive frames needed to accept the first header after junk."""


@dataclass(frozen=True)
class Header:
    """One frame's header.

    Args:
        length: bytes of the frame, header included.
        rate: Hz.
        samples: audio frames in it.
        side: bytes of layer III's side information.
        layer: 1 to 3; 0 is ADTS.
    """

    length: int
    rate: int
    samples: int
    side: int
    layer: int

    def follows(self, other: Header) -> bool:
        """Whether both can belong to one stream."""
        return (self.rate, self.samples, self.layer) == (other.rate, other.samples, other.layer)


Parse = Callable[[bytes], Header | None]


def parse_header(raw: bytes) -> Header | None:
    """The MPEG audio header in four bytes; None where there is none, or one of a free format."""
    if len(raw) < 4 or raw[0] != 0xFF or raw[1] & 0xE0 != 0xE0:
        return None
    version, layer = raw[1] >> 3 & 3, 4 - (raw[1] >> 1 & 3)
    bitrate, rate, padding = raw[2] >> 4, raw[2] >> 2 & 3, raw[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate in {0, 15} or rate == 3:
        return None
    first = version == 3
    hertz, kbps = _RATES[version][rate], _KBPS[first, layer][bitrate]
    mono = raw[3] >> 6 == 3
    if layer == 1:
        return Header((12_000 * kbps // hertz + padding) * 4, hertz, 384, 0, layer)
    if layer == 2 or first:
        side = (17 if mono else 32) if layer == 3 else 0
        return Header(144_000 * kbps // hertz + padding, hertz, 1152, side, layer)
    return Header(72_000 * kbps // hertz + padding, hertz, 576, 9 if mono else 17, layer)


def parse_adts(raw: bytes) -> Header | None:
    """The ADTS header in seven bytes; None where there is none."""
    if len(raw) < 7 or raw[0] != 0xFF or raw[1] & 0xF6 != 0xF0 or (raw[2] >> 2 & 15) >= len(_ADTS_RATES):
        return None
    length = (raw[3] & 3) << 11 | raw[4] << 3 | raw[5] >> 5
    samples = 1024 * (1 + (raw[6] & 3))
    return Header(length, _ADTS_RATES[raw[2] >> 2 & 15], samples, 0, 0) if length > 7 else None


def mpeg_audio(stream: BinaryIO, size: int, start: int, junk: int = 0) -> Container | None:
    """Check an MP3 (or MP2, MP1) or ADTS stream.

    Args:
        stream: seekable.
        size: of the file, bytes.
        start: first byte that may belong to a frame.
        junk: most bytes before the first frame. Junk at both ends means a file that contains a stream (an archive).

    Returns:
        None without such a stream.

    Raises:
        Damage: a frame is missing, cut, or does not begin where the one before it ends.
    """
    block = read_at(stream, start, junk) if junk else b"\xff"
    for parse, kind in ((parse_header, "mp3"), (parse_adts, "aac")):
        at = block.find(b"\xff")
        while at >= 0:
            if _chain(stream, start + at, size, parse):
                _check_front(block[:at], block[at:], parse)
                return _Walk(stream, size, parse, start + at).container(kind, junk=at > 0)
            at = block.find(b"\xff", at + 1)
    return None


def _check_front(junk: bytes, frames: bytes, parse: Parse) -> None:
    """Check that the bytes before the first frame are junk, not a damaged beginning.

    Raises:
        Damage: they are the rest of a frame, or the first frame needs bytes of an earlier one (layer III's reservoir).
    """
    first, lost = parse(frames[:8]), parse(junk[:8])
    if first is None or not junk:
        return
    begins = lost is not None and lost.follows(first)
    protected = 2 * (1 - (frames[1] & 1))
    reservoir = first.layer == 3 and int.from_bytes(frames[4 + protected : 6 + protected], "big")
    reservoir = reservoir >> 7 if first.samples == 1152 else reservoir >> 8
    if begins or reservoir or any(mark in junk for mark in _MARKS):
        raise Damage("has a damaged beginning: its first frames are incomplete")


def _chain(stream: BinaryIO, position: int, size: int, parse: Parse) -> bool:
    """Whether `SURE` frames follow each other at a position, or fewer up to the end."""
    first = None
    for _ in range(SURE):
        header = parse(read_at(stream, position, 8))
        if header is None or (first is not None and not header.follows(first)):
            return first is not None and (position >= size or tag_length(stream, position) > 0)
        first = first or header
        position += header.length
    return True


class _Walk:
    """A pass over all frames."""

    def __init__(self, stream: BinaryIO, size: int, parse: Parse, start: int) -> None:
        self.stream, self.size, self.parse, self.start = stream, size, parse, start
        first = parse(read_at(stream, start, 8))
        assert first is not None
        self.first = first
        self.begin, self.declared = start, self._declared(start, first)  # of the current part: see `_check_part`
        self.count = self.total = 0
        self.end = start

    def container(self, kind: str, *, junk: bool) -> Container | None:
        position, parts = self.start, 1
        while position < self.size:
            header = self.parse(read_at(self.stream, position, 8))
            if header is None or not header.follows(self.first):
                tag = tag_length(self.stream, position)
                if not tag or position + tag > self.size:
                    break
                position += tag
                continue
            if position > self.end:
                raise Damage("has a tag between its frames, where FFmpeg loses a frame")
            if self.count and (declared := self._declared(position, header)) is not None:
                self._check_part(self.end)  # one file was appended to another
                self.begin, self.declared, self.count, parts = position, declared, 0, parts + 1
            if position + header.length > self.size:
                if self.declared is not None and 0 < self.declared[0] < self.count:
                    break  # all that is declared is there
                raise Damage("ends in the middle of a frame")
            position += header.length
            self.count += 1
            self.total += 1
            self.end = position
        self._check_part(self.end)
        if junk and position < self.size:
            return None
        if not self._ends(position):
            raise Damage(f"has no frame at byte {position:,}, where one should begin")
        per = self.first.samples
        seen = self.start == after_id3v2(self.stream, self.size)  # FFmpeg looks for a Xing header there only
        if self.declared is None or parts > 1 or not seen:
            return Container(kind, kind, None, self.first.rate, max(0, self.total - 2) * per, 0, self.end)
        frames, _, delay, padding = self.declared
        whole = (self.count - 1) * per - delay - padding
        known = whole if frames == self.count - 1 and delay + padding and whole >= 0 else None
        return Container(kind, kind, known, self.first.rate, max(0, whole - per), 0, self.end)

    def _declared(self, position: int, header: Header) -> tuple[int, int, int, int] | None:
        if header.layer != 3:
            return None
        return declared(read_at(self.stream, position, header.length), header)

    def _check_part(self, end: int) -> None:
        """Compare a part (a file may be several, appended) with the declarations in its header."""
        if self.declared is None:
            return
        frames, length, _, _ = self.declared
        # Encoders differ in whether they count the header's frame, its bytes, and the last flushed frames.
        if frames and not frames <= self.count <= frames + 3:
            raise Damage(f"declares {frames:,} MP3 frames and has {self.count - 1:,}")
        if length and end - self.begin < length - self.first.length:
            raise Damage(f"declares {length:,} bytes of MP3 frames and has {end - self.begin:,}")
        if frames == self.count and length and end - self.begin < length:
            raise Damage(f"declares {length:,} bytes of MP3 frames and has {end - self.begin:,}")

    def _ends(self, position: int) -> bool:
        """Whether the stream may end here: nothing follows, or padding, or a tag; or all declared frames were found."""
        rest = self.size - position
        if rest <= self.first.length and zeros(self.stream, position, rest) == rest:
            return True
        if before_tags(self.stream, self.size, position - 1) == position:  # a tag with a footer only
            return True
        return self.declared is not None and self.declared[0] > 0


def declared(frame: bytes, header: Header) -> tuple[int, int, int, int] | None:
    """Frames and bytes declared by a Xing, Info or VBRI header, and a LAME tag's delay and padding (0: not declared).

    None where the frame is plain audio.

    Raises:
        Damage: the LAME tag's checksum does not match.
    """
    at = 4 + header.side
    if frame[at : at + 4] in {b"Xing", b"Info"}:
        flags, at = frame[at + 4 : at + 8].ljust(4, b"\0")[3], at + 8
        frames = int.from_bytes(frame[at : at + 4], "big") if flags & 1 else 0
        at += 4 * (flags & 1)
        length = int.from_bytes(frame[at : at + 4], "big") if flags & 2 else 0
        at += 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
        trims = 0
        if frame[at : at + 4] in _TRIMMERS:
            trims = int.from_bytes(frame[at + 21 : at + 24], "big")
            checksum = int.from_bytes(frame[at + 34 : at + 36], "big")
            covered = frame[: at + 34]  # FFmpeg always checks 190 bytes
            if checksum not in {0, _crc16(covered), _crc16(covered.ljust(190, b"\0"))}:
                raise Damage("has a LAME tag with a wrong checksum")
        return frames, length, trims >> 12, trims & 4095
    if frame[36:40] == b"VBRI":
        return int.from_bytes(frame[50:54], "big"), int.from_bytes(frame[46:50], "big"), 0, 0
    return None


def _crc16(data: bytes) -> int:
    """CRC-16/ARC."""
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
    return value


_MARKS = (b"Xing", b"Info", b"VBRI", b"LAME", b"Lavf", b"Lavc")
_TRIMMERS = {b"LAME", b"Lavf", b"Lavc"}
"""Encoders whose delay and padding FFmpeg trims."""
