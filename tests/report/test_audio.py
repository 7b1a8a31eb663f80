"""Audio in the page: small, whole, and the same bytes every time."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from encore.errors import InputError
from encore.report import embedded_audio


@pytest.mark.parametrize("rate", [8000, 16000, 32000, 48000])
def test_it_is_the_same_sound(rate: int) -> None:
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate * 2) / rate)
    uri = embedded_audio.data_uri(tone, rate)
    kind, _, data = uri.partition(",")
    assert kind == "data:audio/mpeg;base64"
    assert uri == embedded_audio.data_uri(tone, rate)
    assert len(uri) < 0.3 * 2 * len(tone)
    heard, found = soundfile.read(io.BytesIO(base64.b64decode(data)))
    assert (found, len(heard)) == (rate, pytest.approx(len(tone), abs=0.1 * rate))
    spectrum = np.abs(np.fft.rfft(heard[:rate]))
    assert int(spectrum.argmax()) == pytest.approx(440, abs=3)


def test_a_rate_that_mp3_does_not_have() -> None:
    assert embedded_audio.data_uri(np.zeros(12345), 12345).startswith("data:audio/ogg")


def test_long_ones_are_cut_and_bad_files_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.zeros(8000 * 40), 8000)
    data = base64.b64decode(embedded_audio.file_uri(tmp_path / "long.wav").partition(",")[2])
    assert len(soundfile.read(io.BytesIO(data))[0]) / 8000 == pytest.approx(30, abs=0.2)
    (tmp_path / "bad.wav").write_text("no audio")
    with pytest.raises(InputError, match=r"bad\.wav can't be read"):
        embedded_audio.file_uri(tmp_path / "bad.wav")
