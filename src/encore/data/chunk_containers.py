"""Containers of chunks, each with a name and a length: RIFF, AIFF, Wave64, AU, CAF, MP4 and ASF.

Chunks must follow each other without a gap and end inside the file. Placeholders of writers that could not seek (they
wrote into a pipe) are not lengths.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

from encore.data.asf import check_asf_packet
from encore.data.container_facts import Container, Damage, Unsupported, read_at, short
from encore.data.tags import tag_length

_PLACEHOLDERS = (0x7F00_0000, 0x7FFF_FFFF, 0xFFFF_FFFF)
"""32-bit sizes written into pipes, plus or minus a header: by sox (AIFF); sox and arecord; FFmpeg."""

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE

Chunk = tuple[bytes, int, int]
"""Name, where the content begins, where it ends."""


def _is_unknown(length: int, whole: int) -> bool:
    """Whether the sizes of the audio and of the whole are placeholders."""
    if length == 0xFFFFFFFF or (length == 0 and whole in {0, 0xFFFFFFFF}):
        return True
    return all(any(abs(value - known) <= 8192 for known in _PLACEHOLDERS) for value in (length, whole))


def riff(stream: BinaryIO, size: int, start: int) -> Container:
    """RIFF, RIFX, RF64 and BW64 (EBU Tech 3306, ITU-R BS.2088)."""
    magic = read_at(stream, start, 12)
    if magic[8:12] != b"WAVE":  # AVI and others of this family
        return Container("other", least=None, start=start)
    order = ">" if magic[:4] == b"RIFX" else "<"
    whole = struct.unpack(f"{order}I", magic[4:8])[0]
    wide: int | None = None
    frames: int | None = None
    block, rate = 0, None
    position, found = start + 12, False
    while position + 8 <= size:
        name, length = struct.unpack(f"{order}4sI", read_at(stream, position, 8))
        if found and (position >= start + 8 + whole or size - position < 16):
            break  # what follows the declared whole is not ours, nor a writer's padding
        body = position + 8
        if name == b"ds64":
            wide = struct.unpack("<Q", read_at(stream, body + 8, 8).ljust(8, b"\0"))[0]
        elif name == b"fmt ":
            block, rate = _wave_format(read_at(stream, body, 40), order)
        elif name == b"data" and not found:
            if length == 0xFFFFFFFF and magic[:4] in {b"RF64", b"BW64"} and wide:
                length = wide
            elif _is_unknown(length, whole):
                return Container("wav", "wav", rate=rate, start=start)
            found = True
            frames = length // block if block else None
        if body + length > size:
            if name != b"data" and found:
                raise Damage("has something behind its audio that is no chunk: its sizes contradict each other")
            raise short(body + length, size)
        position = body + length + length % 2
        if length % 2 and read_at(stream, position - 1, 1) not in {b"", b"\0"}:
            position -= 1  # a few writers leave the padding byte out
    if not found:
        raise Damage("has no audio in it: its data chunk is missing")
    return Container("wav", "wav", frames, rate, 0 if block else None, start)


def _wave_format(raw: bytes, order: str) -> tuple[int, int | None]:
    """Bytes of an audio frame (0 for a compressed one) and the rate.

    Raises:
        Damage: channels, bits and bytes of a frame contradict each other.
        Unsupported: samples narrower than their place by whole bytes.
    """
    if len(raw) < 16:
        raise Damage("has no format chunk")
    tag, channels, rate, _, block, bits = struct.unpack(f"{order}HHIIHH", raw[:16])
    if tag == EXTENSIBLE and len(raw) >= 26:
        valid, tag = (struct.unpack(f"{order}H", raw[at : at + 2])[0] for at in (18, 24))
        if tag in {PCM, FLOAT} and -(-(valid or bits) // 8) != -(-bits // 8):
            raise Unsupported(f"keeps samples of {valid} bits in {bits}, which FFmpeg takes for another format")
    if tag not in {PCM, FLOAT}:
        return 0, rate
    if block != channels * -(-bits // 8):
        raise Damage(f"says {channels} channels of {bits} bits and {block} bytes for them")
    return block, rate


def aiff(stream: BinaryIO, size: int, start: int) -> Container:
    """AIFF and AIFF-C: COMM says how many frames there are, SSND holds them."""
    kind = read_at(stream, start + 8, 4)
    if kind not in {b"AIFF", b"AIFC"}:
        return Container("other", least=None, start=start)
    frames: int | None = None
    width, held, unknown = 0, None, False
    whole = struct.unpack(">I", read_at(stream, start + 4, 4))[0]
    position = start + 12
    while position + 8 <= size:
        name, length = struct.unpack(">4sI", read_at(stream, position, 8))
        body = position + 8
        if held is not None and frames is not None:
            if position >= start + 8 + whole or size - position < 16:
                break  # what follows the declared whole is not ours, nor a writer's padding
            if not all(32 <= byte < 127 for byte in name):
                raise Damage("has something behind its audio that is no chunk")
        if name == b"COMM":
            channels, frames, bits = struct.unpack(">hIh", read_at(stream, body, 8).ljust(8, b"\0"))
            plain = kind == b"AIFF" or read_at(stream, body + 18, 4) in {b"NONE", b"sowt", b"twos"}
            width = channels * -(-bits // 8) if plain else 0
        elif name == b"SSND":
            unknown = _is_unknown(length, whole)
            if unknown:
                break
            held = length - 8 - struct.unpack(">I", read_at(stream, body, 4).ljust(4, b"\0"))[0]
        if body + length > size:
            raise short(body + length, size)
        position = body + length + length % 2
        if length % 2 and read_at(stream, position - 1, 1) not in {b"", b"\0"}:
            position -= 1  # a few writers leave the padding byte out
    if unknown or (frames in {0, 0xFFFFFFFF} and held):
        return Container("aiff", "aiff", start=start)
    if held is None or frames is None:
        raise Damage("has no audio in it: its COMM or SSND chunk is missing")
    if width and held // width != frames:
        raise Damage(f"declares {frames:,} frames and holds {held // width:,}")
    return Container("aiff", "aiff", frames if width else None, None, 0 if width else None, start)


def au(stream: BinaryIO, size: int, start: int) -> Container:
    """Sun AU: one header, then the samples."""
    _, offset, length, code, _, channels = struct.unpack(">6I", read_at(stream, start, 24).ljust(24, b"\0"))
    if length == 0xFFFFFFFF:
        return Container("au", "au", start=start)
    if start + offset + length > size:
        raise short(start + offset + length, size)
    width = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}.get(code, 0) * channels
    if width and length % width:
        raise Damage(f"says {length:,} bytes, no whole number of frames of {width}")
    return Container("au", "au", length // width if width else None, None, 0 if width else None, start)


Parse = Callable[[BinaryIO, int, int], tuple[bytes, int, int] | None]


def _tiled(stream: BinaryIO, position: int, size: int, parse: Parse) -> Iterator[Chunk]:
    """Chunks that fill the file from here to its end, or to padding or a tag there.

    Raises:
        Damage: one leads beyond the end, or what follows is none.
    """
    while position < size and tag_length(stream, position) != size - position:
        chunk = parse(stream, position, size)
        if chunk is None:
            if not read_at(stream, position, 1 << 16).strip(b"\0"):
                return  # padding
            raise Damage("has a hole, or something in it that is no chunk")
        if chunk[2] > size:
            raise short(chunk[2], size)
        yield chunk
        position = chunk[2]


def _caf_chunk(stream: BinaryIO, position: int, size: int) -> Chunk | None:
    raw = read_at(stream, position, 12)
    if len(raw) < 12 or not all(32 <= byte < 127 for byte in raw[:4]):
        return None
    name, length = struct.unpack(">4sq", raw)
    if length == -1 and name == b"data":
        return name, -1, size
    return (name, position + 12, position + 12 + length) if length >= 0 else None


def caf(stream: BinaryIO, size: int, start: int) -> Container:
    """Apple's Core Audio Format."""
    frames, width, per, held, known = None, 0, 0, -1, True
    for name, begin, end in _tiled(stream, start + 8, size, _caf_chunk):
        if name == b"desc":
            kind, _, width, per = struct.unpack(">4s3I", read_at(stream, begin + 8, 16).ljust(16, b"\0"))
            width = width if kind == b"lpcm" and per == 1 else 0
        elif name == b"pakt":
            frames = struct.unpack(">q", read_at(stream, begin + 8, 8).ljust(8, b"\0"))[0] - per  # FFmpeg pads the last
        elif name == b"data":
            known, held = begin >= 0, end - begin - 4
    if held < 0:
        raise Damage("has no audio in it: its data chunk is missing")
    if width:  # plain samples: as many as their bytes
        return Container("caf", "caf", held // width if known else None, start=start)
    return Container("caf", "caf", least=None if frames is None else max(0, frames), start=start)


def _w64_chunk(stream: BinaryIO, position: int, size: int) -> Chunk | None:
    raw = read_at(stream, position, 24)
    if len(raw) < 24:
        return None
    name, length = struct.unpack("<16sQ", raw)
    if length < 24:
        return None
    end = position + length
    return name, position + 24, end if end >= size else min(-(-end // 8) * 8, size)


def wave64(stream: BinaryIO, size: int, start: int) -> Container:
    """Sony Wave64: RIFF with GUIDs and 64-bit lengths."""
    block, rate, frames = 0, None, None
    whole = struct.unpack("<Q", read_at(stream, start + 16, 8).ljust(8, b"\0"))[0]
    limit = start + whole if 40 < whole <= size - start else size
    for name, begin, _ in _tiled(stream, start + 40, limit, _w64_chunk):
        if name.startswith(b"fmt "):
            block, rate = _wave_format(read_at(stream, begin, 40), "<")
        elif name.startswith(b"data"):
            length = struct.unpack("<Q", read_at(stream, begin - 8, 8))[0] - 24
            frames = length // block if block else None
    if frames is None and block:
        raise Damage("has no audio in it: its data chunk is missing")
    return Container("wav", "w64", frames, rate, 0 if block else None, start, limit)


def _atom(stream: BinaryIO, position: int, size: int) -> Chunk | None:
    raw = read_at(stream, position, 16)
    if len(raw) < 8 or not all(32 <= byte < 127 or byte == 0xA9 for byte in raw[4:8]):
        return None
    length, name, head = int.from_bytes(raw[:4], "big"), raw[4:8], 8
    if length == 1 and len(raw) == 16:
        length, head = int.from_bytes(raw[8:], "big"), 16
    if length == 0:
        length = size - position
    return (name, position + head, position + length) if length >= head else None


def mp4(stream: BinaryIO, size: int, start: int) -> Container:
    """ISO base media (ISO/IEC 14496-12): MP4, M4A, MOV, 3GP."""
    names = {name for name, _, _ in _tiled(stream, start, size, _atom)}
    if b"moov" not in names:
        raise Damage("has no index of its audio: its moov atom is missing")
    return Container("mp4", "mov", least=None, start=start)


def _asf_object(stream: BinaryIO, position: int, size: int) -> Chunk | None:
    raw = read_at(stream, position, 24)
    if len(raw) < 24:
        return None
    name, length = struct.unpack("<16sQ", raw)
    if name == ASF_DATA and length in {0, 50}:  # written into a pipe
        return name, position + 24, size
    return (name, position + 24, position + length) if length >= 24 else None


ASF_DATA = b"\x36\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c"
ASF_PROPERTIES = b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65"


def asf(stream: BinaryIO, size: int, start: int) -> Container:
    """Advanced Systems Format: WMA, WMV. A writer into a pipe leaves the play duration at 0."""
    chunks = list(_tiled(stream, start, size, _asf_object))
    if ASF_DATA not in {name for name, _, _ in chunks}:
        raise Damage("has no audio in it: its data object is missing")
    header = read_at(stream, start, min(chunks[0][2] - start, 1 << 20))
    at = header.find(ASF_PROPERTIES)
    if at < 0 or len(header) < at + 100:
        raise Damage("has no file properties")
    packet, most = struct.unpack("<II", header[at + 92 : at + 100])
    body, end = next((begin, end) for name, begin, end in chunks if name == ASF_DATA)
    if packet == most > 0:  # all are as long
        for place in range(body + 26, end - packet + 1, packet):
            check_asf_packet(read_at(stream, place, packet))
    known = any(header[at + 64 : at + 72]) and not header[at + 88] & 1  # the play duration, and the flag of a broadcast
    return Container("asf", "asf", least=None if known else 0, start=start)
