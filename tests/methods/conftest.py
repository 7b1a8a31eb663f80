"""The tiny model that methods are tried on."""

from __future__ import annotations

import pytest
from tests.tiny_model import write_tiny_musicgen

from encore.backends.musicgen import MusicgenBackend


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> MusicgenBackend:
    return MusicgenBackend.load(str(write_tiny_musicgen(tmp_path_factory.mktemp("tiny"))), offline=True)
