"""Rarer files than `test_decode_cases` has: tags behind audio, streams behind each other, samples in wider places."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from tests.data.conftest import melody
from tests.data.test_decode_cases import BARE, FILES, frames, put, refused
from tools import audio_cases

from encore.data.container_facts import Container, Damage
from encore.data.decode import load
from encore.data.mpeg_frames import parse_header
from encore.data.page_containers import ogg_checksum
from encore.data.pyav import NotAudio, _Decoder

LYRICS = b"LYRICSBEGININD0000210LYR00012Hello lyrics"


def written(tmp_path: Path, name: str, seed: int = 3, seconds: float = 1.0, **how: object) -> bytes:
    rate = 16_000
    sound = (melody(seed, seconds, rate)[:-1] * 32_767).astype(np.int16)
    soundfile.write(tmp_path / name, sound, rate, **how)
    return (tmp_path / name).read_bytes()


def repaged(raw: bytes, change: Callable[[int, bytearray], None]) -> bytes:
    """An Ogg stream with each page changed and its checksum set right; `change` takes a page's number and its bytes."""
    out, position, number = b"", 0, 0
    while position < len(raw):
        count = raw[position + 26]
        length = 27 + count + sum(raw[position + 27 : position + 27 + count])
        page = bytearray(raw[position : position + length])
        change(number, page)
        page[22:26] = bytes(4)
        page[22:26] = ogg_checksum(bytes(page)).to_bytes(4, "little")
        out, position, number = out + bytes(page), position + length, number + 1
    return out


def test_an_mp3_with_tags_that_only_have_a_footer_is_read(tmp_path: Path) -> None:
    mp3 = (FILES / "cbr-bare.mp3").read_bytes()
    item = struct.pack("<II", 3, 0) + b"Title\0abc"
    ape = item + struct.pack("<8sIIII8x", b"APETAGEX", 1000, len(item) + 32, 1, 0)
    lyrics = LYRICS + b"%06dLYRICS200" % len(LYRICS)
    for behind in (ape, ape + audio_cases.id3v1(), ape + lyrics + audio_cases.id3v1(), lyrics + ape):
        assert frames(put(tmp_path, mp3 + behind)) == BARE["cbr-bare.mp3"]
    refused(put(tmp_path, mp3 + b"x" * 99 + ape))  # the tag does not begin where the audio ends


def test_what_stands_behind_the_declared_end_of_an_aiff_is_not_read(tmp_path: Path) -> None:
    sound = (melody(3, 1.0)[:-1] * 32_767).astype(np.int16).astype(np.int32) << 16
    soundfile.write(tmp_path / "a.aiff", sound, 16_000, subtype="PCM_24")
    aiff = (tmp_path / "a.aiff").read_bytes()
    for behind in (b"", bytes(100), b"\1\2junk" * 9, b"ID3 " + struct.pack(">I", 110) + audio_cases.id3v2(100)):
        assert frames(put(tmp_path, aiff + behind)) == 15_999


def test_an_aiff_chunk_of_odd_length_may_lack_its_padding(tmp_path: Path) -> None:
    sound = (melody(3, 1.0)[:-1] * 127).astype("i1").tobytes()
    head = b"COMM" + struct.pack(">IhIh", 18, 1, len(sound), 8) + bytes.fromhex("400cfa00000000000000")
    data = b"SSND" + struct.pack(">III", len(sound) + 8, 0, 0) + sound
    for padding in (b"", b"\0"):
        body = b"AIFF" + head + data + padding + b"NAME\0\0\0\2me"
        assert frames(put(tmp_path, b"FORM" + struct.pack(">I", len(body)) + body)) == len(sound) == 15_999


def test_what_stands_behind_a_whole_matroska_segment_is_not_read(tmp_path: Path) -> None:
    mka = (FILES / "opus.mka").read_bytes()
    for behind in (b"", bytes(999), b"junk after" * 7):
        assert frames(put(tmp_path, mka + behind)) == 96_041


def test_an_m4a_with_an_id3v1_tag_behind_it_is_read(tmp_path: Path) -> None:
    with av.open(tmp_path / "a.m4a", "w", format="ipod") as file:
        stream = file.add_stream("alac", rate=16_000, layout="mono")
        sound = (melody(3, 1.0)[None] * 32_767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(sound, "s16p", "mono")
        frame.sample_rate = 16_000
        file.mux([*stream.encode(frame), *stream.encode(None)])
    m4a = (tmp_path / "a.m4a").read_bytes()
    assert frames(put(tmp_path, m4a)) == frames(put(tmp_path, m4a + audio_cases.id3v1())) == 16_000
    refused(put(tmp_path, m4a + audio_cases.id3v1()[:-1]))


def test_what_stands_behind_the_declared_end_of_a_wave64_is_not_read(tmp_path: Path) -> None:
    w64 = written(tmp_path, "a.w64")
    assert frames(put(tmp_path, w64 + b"junk" * 10)) == 15_999


def test_an_opus_stream_may_begin_late_and_skip_much(tmp_path: Path) -> None:
    opus = written(tmp_path, "a.opus", seconds=4.0, format="OGG", subtype="OPUS")
    whole, skipped = frames(tmp_path / "a.opus"), int.from_bytes(opus[38:40], "little")
    assert opus[28:36] == b"OpusHead"

    def later(_: int, page: bytearray) -> None:
        if any(page[6:14]):
            page[6:14] = (int.from_bytes(page[6:14], "little") + 480_000).to_bytes(8, "little")

    def skips(number: int, page: bytearray) -> None:
        if number == 0:
            page[38:40] = (30_000).to_bytes(2, "little")

    assert frames(put(tmp_path, repaged(opus, later))) == whole
    assert frames(put(tmp_path, repaged(opus, skips))) == whole + skipped - 30_000


def test_vorbis_streams_of_different_settings_behind_each_other_are_refused(tmp_path: Path) -> None:
    first = written(tmp_path, "a.ogg", compression_level=0.9)
    second = audio_cases.other_serial(written(tmp_path, "b.ogg", seed=4, compression_level=0.1))
    alike = audio_cases.other_serial(written(tmp_path, "c.ogg", seed=4, compression_level=0.9))
    one, another = frames(tmp_path / "a.ogg"), frames(tmp_path / "c.ogg")
    assert one + another <= frames(put(tmp_path, first + alike)) <= one + another + 256
    refused(put(tmp_path, first + second), "can't be decoded: it is several Vorbis streams of different settings")


@pytest.mark.parametrize(("valid", "bits"), [(24, 32), (16, 32), (16, 24), (20, 32), (20, 24), (12, 16), (0, 16)])
def test_a_wav_with_samples_in_wider_places_is_read_right_or_refused(tmp_path: Path, valid: int, bits: int) -> None:
    sound = (melody(3, 1.0) * 32_767).astype(np.int64) >> 4 << 4  # 12 bits
    width = bits // 8
    data = b"".join((int(one) << bits - 16).to_bytes(width, "little", signed=True) for one in sound)
    form = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 16_000, 16_000 * width, width, bits, 22, valid, 4)
    form += bytes.fromhex("0100000000001000800000aa00389b71")
    body = b"WAVEfmt " + struct.pack("<I", 40) + form + b"data" + struct.pack("<I", len(data)) + data
    path = put(tmp_path, b"RIFF" + struct.pack("<I", len(body)) + body)
    if -(-(valid or bits) // 8) == width:
        np.testing.assert_array_equal(load(path, sample_rate=16_000).samples[0], (sound / 32_768).astype(np.float32))
    else:
        refused(path, f"it keeps samples of {valid} bits in {bits}")


def test_the_later_frames_of_one_packet_have_no_time_of_their_own() -> None:
    """Monkey's Audio: 16 frames a packet, of which FFmpeg gives the first a timestamp."""

    def frame(pts: int | None) -> Any:
        layout = SimpleNamespace(nb_channels=2)
        return SimpleNamespace(
            pts=pts, time_base=Fraction(1, 44_100), samples=4_608, is_corrupt=False, sample_rate=44_100, layout=layout
        )

    def check(*times: int | None) -> None:
        decoder = _Decoder(None, None, Container("other"), 44_100, 2)
        for pts in times:
            decoder._check(frame(pts))

    check(0, None, None, None, 4 * 4_608, None)
    with pytest.raises(Damage, match=r"a gap of 0.104 s after 0.3 s"):
        check(0, None, None, 4 * 4_608)


def test_an_mp3_shorter_than_what_is_to_be_trimmed_is_too_short_not_a_crash(tmp_path: Path) -> None:
    mp3 = (FILES / "cbr-bare.mp3").read_bytes()
    header = parse_header(mp3[:4])
    assert header is not None
    frame = mp3[: header.length]
    for count in (0, 1, 9):
        tag = b"Info" + struct.pack(">II", 1, count) + b"LAME3.97 " + bytes(12) + b"\xff\xff\xff"
        head = (frame[:4] + bytes(header.side) + tag).ljust(header.length, b"\0")
        refused(
            put(tmp_path, head + frame * count),
            "less than 0.1 s|can't be decoded|not in an audio format",
        )


def test_a_tag_that_leads_beyond_the_end_of_an_mp3_is_refused(tmp_path: Path) -> None:
    mp3 = (FILES / "cbr-bare.mp3").read_bytes()
    for tag in (b"TAG", b"TAG".ljust(126), audio_cases.id3v2(9_000)[:500], audio_cases.ape(b"x" * 99)[:40]):
        refused(put(tmp_path, mp3 + tag), "has no frame at byte")


def test_frames_behind_junk_that_ffmpeg_does_not_take_for_an_mp3_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_audio(*_: object) -> None:
        raise NotAudio("Invalid data")

    monkeypatch.setattr("encore.data.decode.open_av", no_audio)
    refused(put(tmp_path, b"junk" * 50 + (FILES / "cbr-bare.mp3").read_bytes()), "can't be decoded: Invalid data")
    refused(put(tmp_path, b"junk" * 50), "is not in an audio format that Encore reads")
