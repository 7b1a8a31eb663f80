from __future__ import annotations

import copy

import pytest
import torch
from tests.metrics.markov import clips as markov_clips
from tests.metrics.markov import models
from tests.tiny_model import CAPTIONS

from encore.api import Batch, Clip
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.measure import measure
from encore.metrics.memorization.depth import Depth, depths


@pytest.fixture
def roles(backend):
    """Three tiny models whose projections of captions are the same."""
    found = {"base": backend}
    for seed, role in enumerate(("unlearned", "gold")):
        found[role] = backend.clone()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in found[role].module.named_parameters():
                if "enc_to_dec_proj" not in name:
                    weight.add_(0.5 * weight.std() * torch.randn(weight.shape, generator=generator))
    return found


def hybrid(first, last, blocks):
    """A model whose embeddings and first blocks are one model's, and whose rest is another's."""
    model = last.clone()
    target, source = (one.model.decoder.model.decoder for one in (model, first))
    target.embed_tokens = copy.deepcopy(source.embed_tokens)
    for block in range(blocks):
        target.layers[block] = copy.deepcopy(source.layers[block])
    return model


@pytest.fixture
def known(roles):
    """What base generates: it knows it, and the others don't."""
    codes = roles["base"].generate(CAPTIONS, seconds=0.2, temperature=0.0, guidance=1.0)
    return [Clip(caption, caption, row) for caption, row in zip(CAPTIONS, codes, strict=True)]


def test_patched_states_are_those_of_a_model_put_together_from_two(roles, known):
    shared = SharedEvaluation(roles, {"forget": known}, embedder=None)
    found = {row.model: row for row in Depth().measure(shared)}
    details = found["unlearned"].details
    base, unlearned, batch = roles["base"], roles["unlearned"], Batch.of(known)
    assert details["after"] == [1, 2]
    with torch.no_grad():
        plain = base.losses(batch)
        for blocks in (1, 2):
            rise = (hybrid(unlearned, base, blocks).losses(batch) - plain).mean()
            assert details["into_base"][blocks - 1] == pytest.approx(float(rise), abs=1e-5)
            nll = hybrid(base, unlearned, blocks).losses(batch).mean()
            assert details["from_base"][blocks - 1] == pytest.approx(float(nll), abs=1e-5)
    assert found["base"].details["into_base"] == [0, 0]


def test_the_score_is_weighted_clipped_and_blind_where_gold_lacks_nothing():
    gold = [{"a": 2.0, "b": 0.04}, {"a": 4.0, "b": 0.01}, {"a": 0.01, "b": 0.0}]
    source = [{"a": 1.0, "b": 9.0}, {"a": 5.0, "b": 9.0}, {"a": 3.0, "b": 9.0}]
    assert depths(source, gold) == {"a": pytest.approx((1.0 + 4.0) / 6.0)}
    assert depths([{"a": -1.0}], [{"a": 2.0}]) == {"a": 0.0}
    assert depths(gold, gold) == {"a": 1.0}


def test_a_network_without_blocks_is_not_measured():
    (row,) = measure(SharedEvaluation(models(), markov_clips(), embedder=None), ["depth"])
    assert row.value is None
    assert "no hidden states" in row.why
