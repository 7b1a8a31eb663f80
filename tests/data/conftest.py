"""Real audio files for the tests of `encore.audio`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray


def melody(seed: int, seconds: float = 5.0, rate: int = 16_000) -> NDArray[np.float32]:
    """A tune drawn from `seed`: notes with three harmonics and a decay, at a tempo of its own. float32 [S]."""
    rng = np.random.default_rng(seed)
    step = float(rng.uniform(0.15, 0.35))
    time = np.arange(int(seconds * rate)) / rate
    tune = np.zeros_like(time)
    for begin in np.arange(0, seconds, step):
        pitch = 220 * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 11, 12, 14]) / 12)
        since = time - begin
        sound = sum(np.sin(2 * np.pi * pitch * harmonic * since) / harmonic for harmonic in (1, 2, 3))
        tune += np.where(since >= 0, sound * np.exp(-6 * np.abs(since)), 0)
    return (0.3 * tune / np.abs(tune).max()).astype(np.float32)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tune: `write("a.flac", seed=1)`; other arguments go to soundfile."""

    def make(name: str, seed: int = 0, seconds: float = 0.5, rate: int = 16_000, **how: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = melody(seed, seconds, rate)
        # Rounded here: libsndfile rounds floats for WAV otherwise than for FLAC.
        soundfile.write(path, sound if how.get("subtype") == "FLOAT" else (sound * 32767).astype(np.int16), rate, **how)
        return path

    return make
