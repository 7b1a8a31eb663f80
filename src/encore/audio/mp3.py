"""Walking an MP3 frame by frame, from header to header, without decoding (ISO 11172-3 and 13818-3, layer III)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

_KBPS = {  # MPEG-1, and MPEG-2 with its half-rate extension 2.5
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_TRAILERS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3", b"3DI")

ID3V1 = 128
"""Bytes of the old tag at a file's end."""

RESYNC = 64 << 10
"""Bytes searched for the next frame where one should begin and doesn't."""


@dataclass(frozen=True)
class Header:
    """One frame's header.

    Args:
        length: bytes of the frame, header included; 0 where it can't be known (free format, layers I and II).
        rate: Hz. samples: audio frames in it. side: bytes of side information.
    """

    length: int
    rate: int
    samples: int
    side: int


def parse_header(raw: bytes) -> Header | None:
    """The header in four bytes; None where they are none."""
    if len(raw) < 4 or raw[0] != 0xFF or raw[1] & 0xE0 != 0xE0:
        return None
    version, layer = raw[1] >> 3 & 3, raw[1] >> 1 & 3
    bitrate, rate = raw[2] >> 4, raw[2] >> 2 & 3
    if version == 1 or layer == 0 or bitrate == 15 or rate == 3:
        return None
    first = version == 3
    hertz = _RATES[version][rate]
    mono = raw[3] >> 6 == 3
    side = (17 if mono else 32) if first else (9 if mono else 17)
    if layer != 1:  # layers I and II
        return Header(0, hertz, 0, side)
    kbps = _KBPS[1 if first else 2][bitrate]
    length = (144 if first else 72) * kbps * 1000 // hertz + (raw[2] >> 1 & 1) if kbps else 0
    return Header(length, hertz, 1152 if first else 576, side)


def walk_mp3(stream: BinaryIO, size: int, start: int) -> tuple[int | None, int, bool]:
    """Count the audio in an MP3's frames.

    Args:
        stream: seekable. size: of the file, bytes. start: where its first frame begins.

    Returns:
        audio frames by count (None where the format can't be walked), the rate in Hz (0 where this is no MP3), and
        whether the file is whole: the last frame is all there, and there are as many as a Xing, Info or VBRI header
        declares. Encoders differ in whether they count the header's own frame; where one is missing, the header's
        count of bytes decides.
    """
    stream.seek(start)
    first = parse_header(stream.read(4))
    if first is None:
        return 0, 0, True
    if not first.length:
        return None, first.rate, True
    stream.seek(start)
    declared = _declared(stream.read(first.length), first)
    position, count, cut = start, 0, False
    while position < size:
        stream.seek(position)
        header = parse_header(stream.read(4))
        if header is None or not header.length or header.rate != first.rate:
            found = _next_frame(stream, position, first.rate)
            if found is None:
                break
            position = found
            continue
        if position + header.length > size:
            cut = True
            break
        position += header.length
        count += 1
    if count < 2 and declared is None and size - start > first.length + ID3V1:
        return 0, 0, True  # four bytes that looked like a header, and nothing after them
    if declared is None:
        return count * first.samples, first.rate, not cut
    frames, length = declared
    enough = count - 1 >= frames or (count == frames and position - start >= length)
    return (count - 1) * first.samples, first.rate, enough and not cut


def _declared(frame: bytes, header: Header) -> tuple[int, int] | None:
    """Frames and bytes that the first frame says there are (0: it doesn't say); None where it is plain audio."""
    at = 4 + header.side
    if frame[at : at + 4] in {b"Xing", b"Info"}:
        flags, at = frame[at + 4 : at + 8].ljust(4, b"\0")[3], at + 8
        frames = int.from_bytes(frame[at : at + 4], "big") if flags & 1 else 0
        at += 4 * (flags & 1)
        return frames, int.from_bytes(frame[at : at + 4], "big") if flags & 2 else 0
    if frame[36:40] == b"VBRI":
        return int.from_bytes(frame[50:54], "big"), int.from_bytes(frame[46:50], "big")
    return None


def _next_frame(stream: BinaryIO, position: int, rate: int) -> int | None:
    """The next place where two frames follow each other; None at a tag behind the audio, or where there is none."""
    stream.seek(position)
    block = stream.read(RESYNC)
    if block.startswith(_TRAILERS) and not block.startswith(b"ID3"):
        return None
    at = block.find(b"\xff", 1)
    while 0 <= at < len(block) - 4:
        header = parse_header(block[at : at + 4])
        if header is not None and header.length and header.rate == rate:
            stream.seek(position + at + header.length)
            follower = parse_header(stream.read(4))
            if follower is not None and follower.rate == rate:
                return position + at
        at = block.find(b"\xff", at + 1)
    return None
