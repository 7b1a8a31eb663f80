"""A model small enough to check many broken plugins on, which knows its forget clips."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen

from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.testing.fixture import Fixture
from encore.unlearn.engine import Clips


def music(track: int, frames: int) -> Clip:
    codes = torch.randint(CODES, (2, frames), generator=torch.Generator().manual_seed(track))
    return Clip(f"track {track % 8}", CAPTIONS[track % len(CAPTIONS)], codes)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    """Random weights, trained on the forget clips until it knows them; clips of 30 random frames or fewer."""
    backend = MusicgenBackend.load(str(write_tiny_musicgen(tmp_path_factory.mktemp("small"))), offline=True)
    forget = [music(0, 30), music(1, 30), music(2, 30), music(8, 20)]
    retain = [music(3, 30), music(4, 30), music(5, 30), music(11, 24)]
    fixture = Fixture(backend, Clips(forget, retain, [music(6, 30), music(7, 26)]))
    optimizer = torch.optim.AdamW(backend.module.parameters(), lr=1e-2)
    for _ in range(60):
        backend.losses(Batch.of(forget)).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert fixture.memorised
    return fixture


@pytest.fixture(scope="session")
def tiny() -> Fixture:
    """The embedded model and its music: sounds that differ."""
    return Fixture.load("musicgen", "tiny", offline=True)
