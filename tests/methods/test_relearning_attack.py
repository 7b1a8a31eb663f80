"""Attacks by relearning, and losses at the weights that they lead to."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen
from torch import nn

from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.methods.encore import codebook_nll
from encore.methods.relearning_attack import RelearningAttack, with_weights


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> MusicgenBackend:
    folder = write_tiny_musicgen(tmp_path_factory.mktemp("tiny"), dropout=0.5)
    return MusicgenBackend.load(str(folder), offline=True)


def clips(count: int, frames: int = 20) -> list[Clip]:
    generator = torch.Generator().manual_seed(count)
    return [
        Clip(f"t{i}", CAPTIONS[i % 3], torch.randint(CODES, (2, frames + i), generator=generator)) for i in range(count)
    ]


def test_an_attack_is_a_few_steps_of_training_on_a_copy(backend: MusicgenBackend) -> None:
    """Each figure against a loop of its own, also the second time, when the model has moved on; dropout is off."""
    model, batch = backend.clone(), Batch.of(clips(3))
    attack = RelearningAttack(lr=1e-3, steps=3, size=2, measure=codebook_nll)
    for _ in range(2):
        with torch.no_grad():
            for weight in model.module.parameters():
                weight.mul_(1.1)
        model.module.train()
        before = copy.deepcopy(model.module.state_dict())
        drawn = torch.get_rng_state()
        *_, found = attack(model, batch.clips, steps=3, size=2)
        assert torch.equal(torch.get_rng_state(), drawn)
        assert model.module.training
        assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
        assert all(weight.grad is None for weight in model.module.parameters())

        twin = model.clone()
        twin.module.eval()
        own = dict(twin.module.named_parameters())
        optimizer = torch.optim.AdamW(own.values(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            twin.losses(batch).mean().backward()
            nn.utils.clip_grad_norm_(own.values(), 1.0)
            optimizer.step()
        assert found.keys() == {name for name, weight in model.module.named_parameters() if weight.requires_grad}
        for name, weight in found.items():
            torch.testing.assert_close(weight, own[name])
        assert max(float((weight.detach() - before[name]).abs().max()) for name, weight in found.items()) > 1e-3


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(codes).tanh())


def test_a_loss_at_moved_weights_has_their_gradient_and_leaves_them() -> None:
    torch.manual_seed(0)
    module, codes = Tied(), torch.tensor([0, 3, 3])
    to = {"embed.weight": torch.randn(5, 3)}
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.embed.weight.copy_(to["embed.weight"])
    before = module.embed.weight.detach().clone()
    with with_weights(module, to):
        loss = module(codes).square().sum()
    loss.backward()
    wanted = twin(codes).square().sum()
    wanted.backward()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(module.embed.weight.grad, twin.embed.weight.grad)
    assert module.head.weight is module.embed.weight
    assert torch.equal(module.embed.weight, before)


def test_moved_weights_are_put_back_after_an_error() -> None:
    module = Tied()
    weight = module.embed.weight
    with pytest.raises(TypeError), with_weights(module, {"embed.weight": torch.ones(5, 3)}):
        module("no codes")
    assert module.embed.weight is weight
    assert module.head.weight is weight
