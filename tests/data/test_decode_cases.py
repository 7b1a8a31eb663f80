"""What testing found in files made by real encoders: each read whole, or refused. Frames are those of `ffmpeg -i`.

The files in `files/` are `tools.audio_cases.sound(22050, 1, 4)`, or `(44100, 2, 2)` for Matroska, through
`lame -t -V7`, `lame -t -b 48`, `ffmpeg -c:a libopus`, `ffmpeg -c:a libvorbis`, and into pipes `ffmpeg -f flac -`,
`sox -t wav -` and `sox -t aiff -`.
"""

from __future__ import annotations

import random
import shutil
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tests.data.conftest import melody
from tools import audio_cases

from encore.data.decode import load
from encore.data.mpeg_frames import parse_header
from encore.errors import InputError

FILES = Path(__file__).parent / "files"
BARE = {"vbr-bare.mp3": 89_856, "cbr-bare.mp3": 89_856}


def put(tmp_path: Path, data: bytes, name: str = "a.bin") -> Path:
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def frames(path: Path) -> int:
    return load(path, sample_rate=16_000).frames_decoded


def refused(path: Path, says: str = "is incomplete|is damaged|can't be decoded") -> None:
    with pytest.raises(InputError, match=says):
        load(path, sample_rate=16_000)


def test_case_A1_vbr_mp3_without_xing_header_is_read_whole() -> None:
    audio = load(FILES / "vbr-bare.mp3", sample_rate=22_050)
    assert audio.frames_decoded == 89_856
    assert audio.frames_declared is None
    made = audio_cases.sound(22_050, 1, 4.0)[:, 0] / 32_768
    matches = [np.corrcoef(audio.samples[0, lag : lag + len(made)], made)[0, 1] for lag in range(1_100, 1_110)]
    assert max(matches) > 0.97  # from the first note to the last


def test_case_A2_cbr_mp3_without_xing_header_is_read_whole(tmp_path: Path) -> None:
    data = (FILES / "cbr-bare.mp3").read_bytes()
    assert frames(FILES / "cbr-bare.mp3") == BARE["cbr-bare.mp3"]
    assert frames(put(tmp_path, audio_cases.id3v2(500_000) + data)) == BARE["cbr-bare.mp3"]


@pytest.mark.parametrize("name", BARE)
def test_case_A3_a_resync_inside_an_mp3_is_damage(tmp_path: Path, name: str) -> None:
    data = (FILES / name).read_bytes()
    lengths = [header.length for header in headers(data)]
    frames = {sum(lengths[i:j]) for i in range(len(lengths)) for j in range(i + 1, i + 6)}  # such a cut is a splice
    chance = random.Random(3)
    for _ in range(60):
        at, cut = chance.randrange(len(data) // 8, len(data) * 7 // 8), chance.randrange(100, 400)
        if cut not in frames:
            refused(put(tmp_path, data[:at] + data[at + cut :]))
        refused(put(tmp_path, data[:at] + chance.randbytes(len(data) - at)))


def headers(data: bytes):
    at = 0
    while header := parse_header(data[at : at + 4]):
        yield header
        at += header.length


@pytest.mark.parametrize(("name", "count"), [("opus.mka", 96_041), ("vorbis.webm", 88_320)])
def test_case_A4_a_cut_matroska_file_is_refused(tmp_path: Path, name: str, count: int) -> None:
    data = (FILES / name).read_bytes()
    assert frames(FILES / name) == count
    for part in (0.3, 0.5, 0.9, 0.99):
        refused(put(tmp_path, data[: int(len(data) * part)]))
    refused(put(tmp_path, data[:7_000] + data[7_300:]))
    refused(put(tmp_path, data[:7_000] + random.Random(4).randbytes(1_000) + data[8_000:]))


def test_case_A5_lengths_declared_twice_are_compared(tmp_path: Path) -> None:
    sound = (melody(5, 0.75) * 32_767).astype(np.int16)
    soundfile.write(tmp_path / "a.aiff", sound, 16_000)
    soundfile.write(tmp_path / "a.flac", sound, 16_000)
    aiff, flac = (tmp_path / "a.aiff").read_bytes(), (tmp_path / "a.flac").read_bytes()
    assert frames(tmp_path / "a.aiff") == frames(tmp_path / "a.flac") == 12_000
    at = aiff.index(b"SSND")
    half = aiff[: at + 4] + struct.pack(">I", 8 + 12_000) + aiff[at + 8 : at + 16 + 12_000]
    refused(put(tmp_path, half[:4] + struct.pack(">I", len(half) - 8) + half[8:]), "declares 12,000 frames")
    for factor in (0.5, 1.5):
        refused(put(tmp_path, audio_cases.flac_total(flac, factor)), r"declares [\d,]+ frames and has 12,000")
    refused(put(tmp_path, audio_cases.over(flac, 26, b"\1" * 16)), "MD5")


@pytest.mark.parametrize(("name", "count"), [("piped.flac", 22_050), ("piped.wav", 8_000), ("piped.aiff", 8_000)])
def test_case_A6_a_file_written_into_a_pipe_is_read(name: str, count: int) -> None:
    audio = load(FILES / name, sample_rate=16_000)
    assert (audio.frames_decoded, audio.frames_declared) == (count, None)


def test_case_A7_bw64_au_and_mp3_behind_ape_or_junk_are_read(tmp_path: Path) -> None:
    sound = (melody(7, 0.5) * 32_767).astype(np.int16)
    for kind, magic in (("RF64", b"BW64"), ("AU", b".snd")):
        soundfile.write(tmp_path / "a", sound, 16_000, format=kind, subtype="PCM_16")
        audio = load(put(tmp_path, magic + (tmp_path / "a").read_bytes()[4:]), sample_rate=16_000)
        np.testing.assert_array_equal(audio.samples[0], sound / np.float32(32_768))
    mp3 = (FILES / "cbr-bare.mp3").read_bytes()
    for before in (audio_cases.ape(b"x" * 300), b"junk" * 50, bytes(900), audio_cases.id3v2(99) + bytes(5_000)):
        for behind in (b"", audio_cases.id3v1(), audio_cases.ape(b"y" * 200) + audio_cases.id3v1()):
            assert frames(put(tmp_path, before + mp3 + behind)) == BARE["cbr-bare.mp3"]


def test_case_A8_too_much_to_decode_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.flac", np.zeros((4_800, 8), np.int16) + 9, 48_000)
    flac = (tmp_path / "a.flac").read_bytes()
    begun = time.monotonic()
    refused(put(tmp_path, audio_cases.flac_total(flac, 30 * 60 * 10)), "691,200,000 samples in 8 channels; at most 400")
    assert time.monotonic() - begun < 1
    monkeypatch.setattr("encore.data.decode.MAX_SAMPLES", 30_000)
    refused(put(tmp_path, audio_cases.flac_total(flac, 0)), "38,400 samples in 8 channels")


def test_case_A8_memory_beyond_the_result_is_flat_in_a_files_length(tmp_path: Path) -> None:
    def beyond(seconds: int) -> int:
        soundfile.write(tmp_path / "a.wav", np.tile(melody(8, 1.0, 44_100)[:, None], (seconds, 2)), 44_100)
        tracemalloc.start()
        audio = load(tmp_path / "a.wav", sample_rate=16_000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - audio.samples.nbytes

    beyond(1)  # imports
    short, long = beyond(2), beyond(60)
    assert long < short + (1 << 20)  # the samples are 10 MB, the result 3.8


needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("ffmpeg", "lame", "sox", "flac", "oggenc", "opusenc"))),
    reason="makes files with ffmpeg, lame, sox, flac, oggenc and opusenc",
)


@needs_tools
@pytest.mark.slow
def test_files_of_all_encoders_are_decoded_as_ffmpeg_decodes_them(tmp_path: Path) -> None:
    verdicts = audio_cases.compare("", tmp_path, chosen=3)
    assert verdicts["made"] >= 140
    assert not any(verdicts[wrong] for wrong in audio_cases.WRONG), verdicts


@needs_tools
@pytest.mark.slow
def test_no_random_damage_makes_a_file_short_unnoticed(tmp_path: Path) -> None:
    verdicts = audio_cases.mutations(600, 1, tmp_path)
    assert verdicts["tried"] == 600
    assert verdicts["accepted short"] == 0
