"""Packets of ASF (Advanced Systems Format specification, 5.2): parts of media objects, each with declared lengths."""

from __future__ import annotations

from encore.data.container_facts import Damage

_WIDTHS = (0, 1, 2, 4)
"""Bytes of a field, by the two bits that say how wide it is."""


def check_asf_packet(packet: bytes) -> None:
    """Check that the parts of one data packet fill it up to its padding, and lie inside their media objects.

    Raises:
        Damage: they don't.
    """
    try:
        valid = _parts_fit(_Fields(packet))
    except IndexError:
        valid = False
    if not valid:
        raise Damage("has a packet whose lengths contradict each other")


class _Fields:
    """Little-endian numbers of changing width, one after another."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, width: int) -> int:
        self.at += width
        if self.at > len(self.data):
            raise IndexError
        return int.from_bytes(self.data[self.at - width : self.at], "little")


def _parts_fit(fields: _Fields) -> bool:
    first = fields.take(1)
    if first & 0x80:  # error correction data, and then the length flags
        fields.take(first & 15)
        first = fields.take(1)
    widths = fields.take(1)
    length = fields.take(_WIDTHS[first >> 5 & 3]) or len(fields.data)
    fields.take(_WIDTHS[first >> 1 & 3])
    end = length - fields.take(_WIDTHS[first >> 3 & 3])
    fields.take(6)  # send time, duration
    if not first & 1:
        return _part_fits(fields, widths, None, end) and fields.at <= end <= len(fields.data)
    several = fields.take(1)
    for _ in range(several & 63):
        if not _part_fits(fields, widths, _WIDTHS[several >> 6], end):
            return False
    return fields.at == end <= len(fields.data)


def _part_fits(fields: _Fields, widths: int, wide: int | None, end: int) -> bool:
    """Read one part; `wide` is the width of its length field, None for a part that extends to the packet's `end`."""
    fields.take(1)  # stream number
    fields.take(_WIDTHS[widths >> 4 & 3])  # media object number
    offset = fields.take(_WIDTHS[widths >> 2 & 3])
    copied = fields.take(_WIDTHS[widths & 3])
    size = fields.take(4) if copied >= 8 else None  # of the media object; a copy of 1 byte is a compressed part
    fields.take(copied - 4 if copied >= 8 else copied)
    length = end - fields.at if wide is None else fields.take(wide)
    if length < 0:
        return False
    fields.take(length)
    return size is None or offset + length <= size
