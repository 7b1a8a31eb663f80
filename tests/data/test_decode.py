from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr

from encore.data.decode import load
from encore.data.resample import mix, resample
from encore.errors import InputError

Write = Callable[..., Path]
FORMATS = {
    "a.wav": {},
    "a24.wav": {"subtype": "PCM_24"},
    "af.wav": {"subtype": "FLOAT"},
    "x.wav": {"format": "WAVEX"},
    "a.rf64": {"format": "RF64"},
    "a.w64": {"format": "W64"},
    "a.aiff": {},
    "a.flac": {},
    "a.mp3": {},
    "a.ogg": {},
    "a.opus": {"format": "OGG", "subtype": "OPUS"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_decodes_whole(write: Write, name: str) -> None:
    path = write(name, seed=3, seconds=2.0, **FORMATS[name])
    audio = load(path, sample_rate=16_000)
    whole = soundfile.read(write("whole.wav", seed=3, seconds=2.0, subtype="FLOAT"))[0]
    assert audio.samples.dtype == np.float32
    assert audio.samples.shape == (1, 32_000)
    assert audio.source_rate == (48_000 if name == "a.opus" else 16_000)  # FFmpeg decodes all Opus at 48 kHz
    assert audio.frames_decoded == 2 * audio.source_rate
    assert audio.frames_declared == (None if audio.format == "ogg" else audio.frames_decoded)
    assert (audio.source_channels, audio.seconds) == (1, 2.0)
    assert np.corrcoef(audio.samples[0], whole)[0, 1] > 0.95


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_by_blocks_is_resampling_at_once(write: Write, rate: int) -> None:
    path = write("a.wav", seconds=2.5, rate=rate, subtype="FLOAT")
    audio = load(path, sample_rate=16_000)
    at_once = soxr.resample(soundfile.read(path, dtype="float32")[0], rate, 16_000)
    assert abs(audio.samples.shape[1] - len(at_once)) <= 1
    n = min(audio.samples.shape[1], len(at_once))
    np.testing.assert_allclose(audio.samples[0, :n], at_once[:n], atol=1e-4)


def test_the_pcm_hash_is_of_the_music_not_of_the_file(write: Write) -> None:
    wav, flac, other = write("a.wav"), write("a.flac"), write("b.wav", seed=1)
    digest = load(wav, sample_rate=16_000).sha256_pcm
    assert load(flac, sample_rate=32_000, channels=2).sha256_pcm == digest
    assert load(other, sample_rate=16_000).sha256_pcm != digest


def test_channels_are_mixed(tmp_path: Path) -> None:
    left = np.linspace(-0.5, 0.5, 4_000, dtype=np.float32)
    path = tmp_path / "s.wav"
    soundfile.write(path, np.stack([left, -left / 2], 1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(load(path, sample_rate=16_000).samples[0], left / 4, atol=1e-6)
    np.testing.assert_array_equal(load(path, sample_rate=16_000, channels=2).samples, [left, -left / 2])


def test_mixing_rules() -> None:
    block = np.eye(6, dtype=np.float32)
    assert mix(block, 6) is block
    np.testing.assert_allclose(mix(block, 1)[:, 0], np.full(6, 1 / 6), rtol=1e-6)
    two = mix(np.ones((3, 6), np.float32), 2)
    np.testing.assert_allclose(two, np.ones((3, 2)), rtol=1e-6)
    assert np.abs(mix(block, 2)[0]).tolist()[1] == 0
    np.testing.assert_array_equal(mix(block[:, :1], 3), np.repeat(block[:, :1], 3, axis=1))
    with pytest.raises(InputError, match="has 6 channels, and the model needs 4"):
        mix(block, 4)


def test_silence_is_refused_unless_it_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "s.wav"
    soundfile.write(path, np.zeros(8_000), 16_000)
    with pytest.raises(InputError, match="is silent"):
        load(path, sample_rate=16_000)
    assert not load(path, sample_rate=16_000, allow_silence=True).samples.any()


def test_the_duration_cap_is_the_callers(write: Write) -> None:
    path = write("a.flac", seconds=2)
    with pytest.raises(InputError, match="lasts 2 s; at most 1 s are read"):
        load(path, sample_rate=16_000, max_seconds=1)


def test_aac_is_read_and_a_cut_one_is_not(tmp_path: Path, write: Write) -> None:
    sound = soundfile.read(write("a.wav", seconds=1.0, rate=44_100), dtype="float32")[0]
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=44_100, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate = 44_100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    audio = load(path, sample_rate=44_100)
    assert abs(audio.frames_decoded - len(sound)) < 4_410
    # AAC begins with 1 024 samples of the encoder's own
    shifted = [np.corrcoef(audio.samples[0, lag : lag + 40_000], sound[:40_000])[0, 1] for lag in range(1_000, 1_050)]
    assert max(shifted) > 0.95
    (tmp_path / "cut.m4a").write_bytes(path.read_bytes()[:-3_000])
    with pytest.raises(InputError):
        load(tmp_path / "cut.m4a", sample_rate=44_100)


def test_ffmpeg_and_libsndfile_agree(write: Write) -> None:
    for name in ("a.wav", "a24.wav", "a8.wav", "a.flac", "a.aiff", "a.mp3", "a.ogg", "a.w64", "af.wav"):
        how = {"subtype": "PCM_U8"} if name == "a8.wav" else FORMATS[name]
        path = write(name, seed=5, seconds=2.0, **how)
        ours, theirs = load(path, sample_rate=16_000).samples[0], soundfile.read(path, dtype="float32")[0]
        np.testing.assert_allclose(ours, theirs, atol=2e-6 if name in {"a.mp3", "a.ogg"} else 0)


@pytest.mark.parametrize("bits", ["PCM_S8", "PCM_16", "PCM_24"])
def test_a_flacs_md5_is_of_its_samples(write: Write, bits: str) -> None:
    path = write("a.flac", subtype=bits)
    data = bytearray(path.read_bytes())
    assert any(data[26:42])
    load(path, sample_rate=16_000)
    data[30] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="MD5"):
        load(path, sample_rate=16_000)


def test_a_playlist_opens_no_other_file(tmp_path: Path, write: Write) -> None:
    write("a.wav")
    for name, text in (
        ("a.m3u8", "#EXTM3U\n#EXTINF:1,\na.wav\n"),
        ("a.ffconcat", "ffconcat version 1.0\nfile a.wav\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match="is not in an audio format that Encore reads"):
            load(tmp_path / name, sample_rate=16_000)


def test_joined_blocks_grow_and_are_trimmed() -> None:
    blocks = [np.full((n, 2), n, np.float32) for n in (3, 1, 7)]
    for expected in (0, 5, 11, 40):
        joined = resample(iter(blocks), 8_000, 8_000, 2, expected)
        assert joined.shape == (2, 11)
        assert joined.flags.c_contiguous
        np.testing.assert_array_equal(joined, np.concatenate(blocks).T)
