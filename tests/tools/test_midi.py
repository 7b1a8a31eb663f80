"""Standard MIDI Files, read back by a parser of our own."""

from tools.build_assets import midi
from tools.build_assets.midi import Note


def events(data):
    """[(tick, status, data bytes)] of a format-0 file, read as the specification says."""
    assert data[:4] == b"MThd"
    assert data[8:14] == bytes([0, 0, 0, 1, 1, 224])  # format 0, one track, 480 ticks
    assert int.from_bytes(data[18:22], "big") == len(data) - 22
    at, tick, out = 22, 0, []
    while at < len(data):
        delta = 0
        while True:
            delta, more = delta << 7 | data[at] & 127, data[at] & 128
            at += 1
            if not more:
                break
        tick += delta
        status = data[at]
        size = 2 + data[at + 2] if status == 0xFF else 1 if status >> 4 == 0xC else 2
        out.append((tick, status, data[at + 1 : at + 1 + size]))
        at += 1 + size
    return out


def test_a_file_holds_tempo_programs_and_notes_in_order():
    notes = [Note(0, 1, 60, 0, 90), Note(1, 1, 60, 0, 80), Note(0.5, 70.0, 40, 1, 70)]
    found = events(midi.encode(notes, [19, 48], 120))
    assert found == [
        (0, 0xFF, b"\x51\x03" + (500_000).to_bytes(3, "big")),
        (0, 0xC0, bytes([19])),
        (0, 0xC1, bytes([48])),
        (0, 0x90, bytes([60, 90])),
        (240, 0x91, bytes([40, 70])),
        (480, 0x80, bytes([60, 0])),  # ends before the same pitch starts again
        (480, 0x90, bytes([60, 80])),
        (960, 0x80, bytes([60, 0])),
        (33_840, 0x81, bytes([40, 0])),
        (33_840, 0xFF, b"\x2f\x00"),
    ]


def test_no_part_plays_on_the_percussion_channel():
    notes = [Note(0, 1, 60 + i, i, 90) for i in range(12)]
    channels = {status & 15 for _, status, _ in events(midi.encode(notes, [0] * 12, 90)) if status >> 4 == 9}
    assert channels == set(range(13)) - {9}
