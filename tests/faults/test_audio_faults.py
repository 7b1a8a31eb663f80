"""Faults 8 to 11 of audio files, on real files: refused with exit 3, by name, in bounded memory and time."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from encore.data.decode import MAX_PEAK, load
from encore.data.pyav import Window
from encore.errors import InputError

SOURCE = Path(__file__).parents[2] / "src"
RATE = 16_000


def tone(seconds: float = 1.0) -> np.ndarray:
    time_ = np.arange(int(seconds * RATE)) / RATE
    return np.round(9_000 * np.sin(2 * np.pi * 330 * time_ * (1 + 0.1 * time_))).astype(np.int16)


def wav(*, channels: int = 1, rate: int = RATE, data: bytes = b"\1\2" * RATE, declared: int | None = None) -> bytes:
    block = channels * 2
    form = struct.pack("<IHHIIHH", 16, 1, channels, rate, min(rate * block, 2**32 - 1), block, 16)
    head = b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + form
    return head + b"data" + struct.pack("<I", len(data) if declared is None else declared) + data


def refused(path: Path, says: str) -> InputError:
    with pytest.raises(InputError, match=says) as caught:
        load(path, sample_rate=RATE)
    assert caught.value.exit_code == 3
    assert path.name in caught.value.message
    return caught.value


def put(tmp_path: Path, name: str, data: bytes) -> Path:
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


# -------------------------------------------------------------------------------------------------------------- 8


def test_08_an_empty_file(tmp_path: Path) -> None:
    refused(put(tmp_path, "a.wav", b""), "is empty")


def test_08_text_as_wav(tmp_path: Path) -> None:
    refused(put(tmp_path, "a.wav", b"RIFFS and melodies, a novel\n" * 50), "is not in an audio")
    refused(put(tmp_path, "b.wav", b"once upon a time\n" * 50), "is not in an audio")


def test_08_zip_as_mp3(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "real.mp3", tone(), RATE)
    with zipfile.ZipFile(tmp_path / "a.mp3", "w", zipfile.ZIP_STORED) as archive:
        archive.write(tmp_path / "real.mp3", "real.mp3")  # an MP3 decoder that hunts for frames would play it
    refused(tmp_path / "a.mp3", "is not in an audio")


def test_08_random_bytes_under_every_magic(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(5_000)
    for magic in (b"RIFF\0\0\0\0WAVE", b"fLaC", b"OggS", b"FORM\0\0\0\0AIFF", b"\xff\xfb\x90\0", b"ID3\4\0\0\0\0\0\0"):
        with pytest.raises(InputError):
            load(put(tmp_path, "a.bin", magic + noise), sample_rate=RATE)


def test_08_a_disk_that_fails_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", tone(3), RATE)
    read = Window.read

    def fails(self: Window, size: int = -1) -> bytes:
        if self.position > 50_000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self, size)

    monkeypatch.setattr(Window, "read", fails)
    refused(tmp_path / "a.wav", "can't be read: Input/output error")


# -------------------------------------------------------------------------------------------------------------- 9


KINDS: list[tuple[str, dict[str, object]]] = [
    ("a.wav", {}),
    ("a.flac", {}),
    ("a.mp3", {}),
    ("constant.mp3", {"bitrate_mode": "CONSTANT"}),
    ("variable.mp3", {"bitrate_mode": "VARIABLE"}),
    ("a.ogg", {}),
    ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
    ("a.aiff", {}),
    ("a.w64", {"format": "W64"}),
    ("a.rf64", {"format": "RF64"}),
]


@pytest.mark.parametrize(("name", "how"), KINDS, ids=[name for name, _ in KINDS])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.97])
def test_09_a_cut_file(tmp_path: Path, name: str, how: dict[str, object], part: float) -> None:
    soundfile.write(tmp_path / name, tone(2), RATE, **how)
    data = (tmp_path / name).read_bytes()
    least = 2 * RATE - (256 if name == "a.ogg" else 0)  # FFmpeg omits half a block of a Vorbis stream of one page
    assert least <= load(tmp_path / name, sample_rate=RATE).samples.shape[1] <= 2 * RATE
    refused(put(tmp_path, f"cut-{name}", data[: int(len(data) * part)]), "is incomplete|is damaged|can't be decoded")


def test_09_an_mp3_cut_between_frames_is_known_by_its_header(tmp_path: Path) -> None:
    from encore.data.mpeg_frames import parse_header

    soundfile.write(tmp_path / "a.mp3", tone(), RATE)
    data = (tmp_path / "a.mp3").read_bytes()
    at, ends = 0, []
    while at < len(data):
        header = parse_header(data[at : at + 4])
        assert header is not None
        at += header.length
        ends.append(at)
    assert ends[-1] == len(data)
    for end in ends[1:-1]:
        refused(put(tmp_path, "cut.mp3", data[:end]), "is incomplete")


def test_09_a_hole_in_a_flac_and_in_an_ogg(tmp_path: Path) -> None:
    for name in ("a.flac", "a.ogg"):
        soundfile.write(tmp_path / name, tone(3), RATE)
        data = (tmp_path / name).read_bytes()
        middle = len(data) // 2
        refused(put(tmp_path, f"hole-{name}", data[:middle] + data[middle + 700 :]), "is incomplete|is damaged")


# ------------------------------------------------------------------------------------------------------------- 10


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_10_samples_that_are_no_numbers(tmp_path: Path, value: float, subtype: str) -> None:
    sound = tone() / 32768
    sound[-1] = value
    soundfile.write(tmp_path / "a.wav", sound, RATE, subtype=subtype)
    refused(tmp_path / "a.wav", "NaN or infinite")


@pytest.mark.parametrize("peak", [1e5, -1e5, MAX_PEAK * 1.01, 1e300])
def test_10_a_peak_far_beyond_full_scale(tmp_path: Path, peak: float) -> None:
    sound = tone() / 32768
    sound[0] = peak
    soundfile.write(tmp_path / "a.wav", sound, RATE, subtype="DOUBLE")
    refused(tmp_path / "a.wav", "peaks at|NaN or infinite")  # 1e300 is infinite in float32


def test_10_a_little_overshoot_is_music(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone() / 9_000 * 1.5, RATE, subtype="FLOAT")
    assert load(tmp_path / "a.wav", sample_rate=RATE).samples.max() == pytest.approx(1.5, rel=1e-3)


def test_10_zero_length(tmp_path: Path) -> None:
    refused(put(tmp_path, "a.wav", wav(data=b"")), "0 frames")
    refused(put(tmp_path, "b.wav", wav(data=b"\1\2" * 9)), "9 frames")
    soundfile.write(tmp_path / "c.flac", np.zeros(0), RATE)
    refused(tmp_path / "c.flac", "is empty")  # libsndfile writes nothing at all


def test_10_a_thousand_channels(tmp_path: Path) -> None:
    refused(put(tmp_path, "a.wav", wav(channels=1_000)), "too many, channels; at most 32")


@pytest.mark.parametrize("rate", [2**31 - 1, 1, 3_999, 384_001])
def test_10_rates_out_of_range(tmp_path: Path, rate: int) -> None:
    refused(put(tmp_path, "a.wav", wav(rate=rate, data=b"\1\2" * 4_000)), "has a sample rate of|can't be decoded|lasts")


def test_10_two_to_the_thirty_first_less_one(tmp_path: Path) -> None:
    refused(put(tmp_path, "a.wav", wav(rate=2**31 - 1)), "has a sample rate of 2147483647 Hz")


# ------------------------------------------------------------------------------------------------------------- 11


def loads_in(path: Path, megabytes: int, seconds: float) -> str:
    """What a process that may grow by so many megabytes says of a file; fails where it takes longer."""
    code = f"""if True:
        import resource
        import av, numpy, soxr
        from encore.data.decode import load
        from encore.errors import InputError
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + ({megabytes} << 20),) * 2)
        try:
            load({str(path)!r}, sample_rate=16_000)
        except InputError as error:
            print(error.exit_code, error.message)
    """
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun < seconds
    return done.stdout


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
def test_11_a_small_flac_that_decodes_to_hours(tmp_path: Path) -> None:
    path = tmp_path / "bomb.flac"
    with soundfile.SoundFile(path, "w", 8_000, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(40):
            file.write(np.zeros(1_000_000, np.int16))
    assert path.stat().st_size < 1 << 20
    says = loads_in(path, 64, 10)
    assert says.startswith("3 ")
    assert "lasts 5,000 s; at most 3,600 s" in says


def lying_flac(tmp_path: Path, frames: int) -> Path:
    soundfile.write(tmp_path / "a.flac", tone(), RATE)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] = data[21] & 0xF0 | frames >> 32
    data[22:26] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    return put(tmp_path, "lie.flac", bytes(data))


@linux
def test_11_a_header_that_claims_two_to_the_thirty_sixth_frames(tmp_path: Path) -> None:
    says = loads_in(lying_flac(tmp_path, 2**36 - 1), 64, 10)
    assert says.startswith("3 ")
    assert "lasts 4,294,967 s" in says


def test_11_a_header_that_claims_a_little_more(tmp_path: Path) -> None:
    refused(lying_flac(tmp_path, RATE + 2_000), "is incomplete|is damaged|can't be decoded")


@pytest.mark.parametrize("declared", [2**31, 2**32 - 2])
def test_11_a_wav_header_that_claims_gigabytes(tmp_path: Path, declared: int) -> None:
    refused(put(tmp_path, "a.wav", wav(declared=declared)), "declares")


def test_11_the_callers_cap_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.mp3", tone(3), RATE)
    read: Callable[..., object] = lambda *_, **__: pytest.fail("decoded")  # noqa: E731
    monkeypatch.setattr("encore.data.pyav._Decoder.blocks", read)
    with pytest.raises(InputError, match="lasts 3 s; at most 2 s"):
        load(tmp_path / "a.mp3", sample_rate=RATE, max_seconds=2)


# ------------------------------------------------------------------------------------------------------------- 12


@pytest.mark.parametrize("name", [b"caf\xe9.wav", "🎸.flac".encode(), b"two\nlines.mp3", b"\x1b[2J.ogg"])
def test_12_a_file_of_any_name_decodes(tmp_path: Path, name: bytes) -> None:
    plain = tmp_path / f"plain.{name.rpartition(b'.')[2].decode()}"
    soundfile.write(plain, tone(2), RATE)
    target = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    plain.rename(target)
    assert load(target, sample_rate=RATE).samples.shape[1] >= 2 * RATE - 256  # see test_09_a_cut_file
    target.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        load(target, sample_rate=RATE)
    caught.value.message.encode("utf-8")
    assert caught.value.message.isprintable()
