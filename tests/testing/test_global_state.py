"""What a check does to a model or to the shared random generators is undone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from encore.hashing import module_sha256
from encore.testing.fixture import Fixture
from encore.testing.state import close, seed_shared, undisturbed


def test_weights_modes_and_gradients_come_back(small: Fixture) -> None:
    base = small.base
    before = module_sha256(base.module, *base.frozen().values())

    def ruin() -> None:
        with torch.no_grad():
            for part in (base.module, *base.frozen().values()):
                for weight in part.parameters():
                    weight.mul_(2)
        base.module.train().requires_grad_(False)
        base.frozen()["codec"].requires_grad_(True)
        torch.set_grad_enabled(False)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), undisturbed(base):
        ruin()
    assert module_sha256(base.module, *base.frozen().values()) == before
    assert torch.is_grad_enabled()
    assert not any(part.training for part in base.module.modules())
    assert all(weight.requires_grad for weight in base.module.parameters())
    assert not any(weight.requires_grad for weight in base.frozen()["codec"].parameters())


def test_clips_come_back(small: Fixture) -> None:
    clip = small.clips.forget[0]
    before = clip.codes.clone()
    with small.undisturbed():
        clip.codes.zero_()
    assert torch.equal(clip.codes, before)


def test_shared_generators_are_watched_and_restored() -> None:
    known = seed_shared(3)
    assert known.moved() == ""
    torch.rand(1)
    assert known.moved() == "torch's"
    np.random.rand(1)  # noqa: NPY002
    assert known.moved() == "torch's and numpy's"
    drawn = random.random()
    known.restore()
    assert known.moved() == ""
    assert random.random() == drawn


def test_close_is_relative_and_wants_one_shape() -> None:
    assert close(torch.tensor([100.0]), torch.tensor([100.009]))
    assert not close(torch.tensor([0.0]), torch.tensor([0.001]))
    assert not close(torch.zeros(1), torch.zeros(2))
