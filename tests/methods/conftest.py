"""The tiny model that methods are tried on."""

from __future__ import annotations

import math

import pytest
from tests.tiny_model import write_tiny_musicgen

from encore.backends.musicgen import MusicgenBackend


@pytest.fixture(autouse=True)
def _memorised_by_nll_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests set which NLLs are of memorised clips; 20 random codes are few enough to be called predictable."""
    monkeypatch.setattr("encore.memorised.KNOWN_SHARE", math.inf)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> MusicgenBackend:
    return MusicgenBackend.load(str(write_tiny_musicgen(tmp_path_factory.mktemp("tiny"))), offline=True)
