from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen

from encore.api import Clip
from encore.backends.musicgen import MusicgenBackend
from encore.runs.engine import Clips


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_musicgen(tmp_path_factory.mktemp("tiny"), dropout=0.1)


@pytest.fixture(scope="session")
def _tiny(tiny_folder: Path) -> MusicgenBackend:
    return MusicgenBackend.load(str(tiny_folder), offline=True)


@pytest.fixture
def backend(_tiny: MusicgenBackend) -> MusicgenBackend:
    """A backend with weights of its own."""
    return _tiny.clone()


@pytest.fixture(scope="session")
def clips() -> Clips:
    """5 forget, 7 retain, 4 holdout clips of random codes and of several lengths."""
    generator = torch.Generator().manual_seed(0)
    made = [
        Clip(f"t{i}", CAPTIONS[i % 3], torch.randint(CODES, (2, 12 + i % 5), generator=generator)) for i in range(16)
    ]
    return Clips(made[:5], made[5:12], made[12:])
