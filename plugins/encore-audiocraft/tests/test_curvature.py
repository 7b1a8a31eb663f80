"""Every trainable parameter's per-sample gradients, against a float64 loop: packed projections and their slices too."""

from __future__ import annotations

import pytest
import torch
from pairs import Pair, clips, slow
from torch import nn

from encore.api import Batch
from encore.curvature import capture
from encore_audiocraft.backend import AudiocraftBackend


@pytest.fixture(scope="module")
def backend(pair: Pair) -> AudiocraftBackend:
    backend = AudiocraftBackend.load(str(pair.audiocraft))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in backend.module.parameters():  # fresh norms and biases are ones and zeros
            weight += 0.1 * torch.randn_like(weight)
    for part in (backend.module, *backend.frozen().values()):
        part.double()
    return backend


def check(module: nn.Module, losses: object, rtol: float) -> None:
    grads = slow.per_sample(module, losses)
    assert all(grad.any() for grad in grads.values()), "a parameter that the loss does not depend on tests nothing"
    directions = [{name: torch.randn_like(grad[0]) for name, grad in grads.items()}]
    weights = torch.randn(len(next(iter(grads.values()))), dtype=torch.float64)
    with capture(module, fisher=True, norms=True, directions=directions, total=True, keep=True) as c:
        losses().sum().backward()
    pairs = [
        (c.fisher, slow.fisher(grads)),
        (c.total, slow.weighted_sum(grads, torch.ones_like(weights))),
        (c.weighted_sum(weights), slow.weighted_sum(grads, weights)),
        ({"": c.sq_norms}, {"": slow.sq_norms(grads)}),
        ({"": c.dots}, {"": slow.dots(grads, directions)}),
    ]
    for found, expected in pairs:
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert (found[name] - value).norm() <= rtol * value.norm(), name


@pytest.mark.parametrize("lengths", [(9, 20, 14), (20,), (4, 4, 4, 4)], ids=str)
def test_every_parameter(backend: AudiocraftBackend, lengths: tuple[int, ...]) -> None:
    """Clips and captions of different lengths, padded: with masked cross attention and, for one clip, without."""
    batch = Batch.of(clips(backend.codebooks, *lengths))
    names = {name for name, _ in backend.module.named_parameters()}
    for part in ("self_attn.in_proj_weight", "cross_attention.in_proj_weight", "norm_cross.bias", "linear2.weight"):
        assert f"transformer.layers.1.{part}" in names
    check(backend.module, lambda: backend.losses(batch), 1e-6)  # the contract's NLL is float32


def test_slices_of_cross_attention_each_have_a_gradient(backend: AudiocraftBackend) -> None:
    batch = Batch.of(clips(backend.codebooks, 9, 20))
    with capture(backend.module, fisher=True) as c:
        backend.losses(batch).sum().backward()
    for query_key_value in c.fisher["transformer.layers.0.cross_attention.in_proj_weight"].chunk(3):
        assert query_key_value.any()
