from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encore.data.containers import Damage, behind_junk, inspect
from encore.data.mpeg_frames import parse_header

Write = Callable[..., Path]


def wav(length: int, have: int = 3_200, *, magic: bytes = b"RIFF", before: bytes = b"") -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16)
    return (
        magic
        + struct.pack("<I4s", 36 + have, b"WAVE")
        + before
        + form
        + struct.pack("<4sI", b"data", length)
        + b"\1" * have
    )


def strip_first_frame(mp3: bytes) -> bytes:
    header = parse_header(mp3[:4])
    assert header is not None
    return mp3[header.length :]


def test_a_wav_from_a_pipe_has_no_length_and_passes() -> None:
    container = inspect(io.BytesIO(wav(0xFFFFFFFF)))
    assert (container.kind, container.frames) == ("wav", None)


def test_a_wav_that_declares_more_than_it_has_is_damage() -> None:
    assert inspect(io.BytesIO(wav(3_200)))
    with pytest.raises(Damage, match="declares 3,246 bytes and has 3,244"):
        inspect(io.BytesIO(wav(3_202)))
    with pytest.raises(Damage, match="no audio in it"):
        inspect(io.BytesIO(wav(3_200)[:36]))


def test_rf64_takes_its_length_from_ds64() -> None:
    def rf64(length: int) -> bytes:
        return wav(0xFFFFFFFF, magic=b"RF64", before=struct.pack("<4sIQQQI", b"ds64", 28, 0, length, 0, 0))

    assert inspect(io.BytesIO(rf64(3_200)))
    with pytest.raises(Damage, match="declares"):
        inspect(io.BytesIO(rf64(2**40)))


def test_an_mp3_without_a_header_frame_is_counted_frame_by_frame(write: Write) -> None:
    data = strip_first_frame(write("a.mp3", seconds=2, bitrate_mode="VARIABLE").read_bytes())
    container = inspect(io.BytesIO(data))
    assert (container.kind, container.frames) == ("mp3", None)
    assert container.least is not None
    assert 32_000 - 2 * 576 <= container.least <= 32_000 + 2 * 576
    with pytest.raises(Damage, match="ends in the middle"):
        inspect(io.BytesIO(data[:-7]))


def test_an_mp3_between_tags_is_whole(write: Write) -> None:
    data = write("a.mp3").read_bytes()
    tagged = b"ID3\x04\0\0\0\0\0\x10" + b"\0" * 16 + b"\0" * 50 + data + b"APETAGEX" + b"x" * 40 + b"TAG" + b"\0" * 125
    plain, wrapped = inspect(io.BytesIO(data)), inspect(io.BytesIO(tagged))
    assert plain.end == len(data)
    assert wrapped.end == len(data) + 26 + 50


def test_junk_before_an_mp3_is_passed_over_and_junk_inside_it_is_damage(write: Write) -> None:
    data = strip_first_frame(write("a.mp3", seconds=1).read_bytes())
    with pytest.raises(Damage, match="has no frame at byte"):
        inspect(io.BytesIO(data[: len(data) // 2] + b"junk" * 100 + data[len(data) // 2 :]))
    behind = io.BytesIO(b"junk" * 100 + data)
    assert inspect(behind).kind == "other"
    hidden = behind_junk(behind)
    assert hidden is not None
    assert hidden.kind == "mp3"
    assert behind_junk(io.BytesIO(b"junk" * 100 + data + b"junk" * 100)) is None  # an archive


def test_one_mp3_behind_another_is_two_whole_ones(write: Write) -> None:
    data = write("a.mp3", seconds=1).read_bytes()
    assert inspect(io.BytesIO(data + data)).frames is None
    with pytest.raises(Damage, match="MP3 frames and has"):
        inspect(io.BytesIO(data[: len(data) // 2] + data))
    with pytest.raises(Damage, match="has a tag between its frames"):
        inspect(io.BytesIO(data + b"TAG" + b"\0" * 125 + data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"plain text that goes on",
        b"PK\x03\x04" + b"\0" * 60,
        b"\xff\xfb",
        b"\xff\xd8\xff\xe0JFIF",
        b"ID3",
        b"\0" * 99,
    ],
)
def test_what_is_no_audio_is_left_to_ffmpeg(data: bytes) -> None:
    assert inspect(io.BytesIO(data)).kind == "other"
    assert behind_junk(io.BytesIO(data)) is None


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.wav", {}),
        ("a.w64", {"format": "W64"}),
        ("a.aiff", {}),
        ("a.ogg", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.mp3", {}),
    ],
)
def test_every_cut_is_noticed(write: Write, name: str, how: dict[str, object]) -> None:
    data = write(name, seconds=0.4, **how).read_bytes()
    assert inspect(io.BytesIO(data))
    for length in range(len(data) // 8, len(data) - 1, 97):
        with pytest.raises(Damage):
            inspect(io.BytesIO(data[:length]))


@given(
    head=st.sampled_from(
        [
            b"RIFF",
            b"RIFF\0\0\0\0WAVE",
            b"RF64",
            b"FORM",
            b"FORM\0\0\0\0AIFF",
            b"riff\x2e\x91\xcf\x11",
            b"fLaC",
            b"OggS",
            b"ID3\4\0\0",
            b"\xff\xfb\x90",
            b"",
            b"caff",
            b".snd",
            b"wvpk",
            b"\x1a\x45\xdf\xa3",
            b"\0\0\0\x20ftyp",
            b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
            b"APETAGEX",
            b"LYRICSBEGIN",
            b"\xff\xf1",
        ]
    ),
    rest=st.binary(max_size=600),
)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_noise_is_judged_and_never_crashes(head: bytes, rest: bytes) -> None:
    for read in (inspect, behind_junk):
        with contextlib.suppress(Damage):
            read(io.BytesIO(head + rest))
