"""A model split over processes; real ones are in tests/test_distributed.py and tests/faults/test_rank_faults.py."""

from __future__ import annotations

import pytest
import torch

from encore import distributed
from encore.backends.musicgen import MusicgenBackend
from encore.errors import UsageError
from encore.methods.encore import codebook_nll
from encore.methods.relearning_attack import RelearningAttack
from encore.plugins import methods
from encore.unlearn import sharding


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [("npo", {"per_track_clip": 1.0}, "--per-track-clip needs whole gradients"), ("ewc", {}, "its penalty reads")],
)
def test_what_needs_whole_weights_is_refused(name: str, options: dict[str, float], words: str) -> None:
    chosen = methods().resolve(name)
    with pytest.raises(UsageError, match=words):
        sharding.check(chosen(chosen.Options(**options)))


@pytest.mark.parametrize("name", ["graddiff", "npo", "encore", "rl", "ssd", "task-vector"])
def test_others_are_not(name: str) -> None:
    chosen = methods().resolve(name)
    sharding.check(chosen(chosen.Options()))


def test_an_attack_needs_whole_weights(backend: MusicgenBackend) -> None:
    attack = RelearningAttack(lr=0.1, steps=1, size=1, measure=codebook_nll)
    with distributed.lockstep(), pytest.raises(UsageError, match="relearning attacks need whole weights"):
        list(attack(backend, [], steps=1, size=1))


def test_whole_tensors_stay_as_they_are() -> None:
    tensor = torch.ones(2)
    assert not sharding.is_split(tensor)
    assert (
        sharding.whole(tensor) is sharding.split_like(tensor, tensor) is sharding.gathered({"a": tensor})["a"] is tensor
    )
