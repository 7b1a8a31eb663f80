from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tests.latent_model import LatentBackend, latent_clips
from tests.metrics.markov import clips, models

from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.robustness.quantized import Quantised, round_weights, rounded


def rows(shared):
    return {(row.metric, row.model, row.set): row for row in Quantised().measure(shared)}


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_is_to_the_nearest_of_the_channels_levels(bits):
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1e-3], [1], [9], [2], [5]])
    found = rounded(weight, bits).numpy()
    for row, own in zip(weight.numpy().astype(np.float64), found, strict=True):
        top = 2 ** (bits - 1) - 1
        levels = np.arange(-top, top + 1) * np.abs(row).max() / top
        nearest = [min(levels, key=lambda level, w=w: abs(level - w)) for w in row]
        assert own == pytest.approx(nearest, rel=1e-5, abs=1e-9)
        assert len(np.unique(own.round(9))) <= 2**bits - 1


def test_a_channel_of_zeros_and_vectors_stay():
    layer = torch.nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0] = 0
    bias = layer.bias.clone()
    round_weights(layer, 4)
    assert layer.weight[0].tolist() == [0, 0, 0]
    assert torch.equal(layer.bias, bias)


def test_rows_are_those_of_a_rounded_copy_and_the_model_stays():
    roles = models(forgotten=2.0)
    before = {role: copy.deepcopy(model.module.state_dict()) for role, model in roles.items()}
    shared = SharedEvaluation(roles, clips(), embedder=None)
    found = rows(shared)
    by_hand = roles["unlearned"].clone()
    round_weights(by_hand.module, 4)
    expected = shared.derive(models={"unlearned": by_hand}).nll("unlearned", "forget")
    assert found["quantised_4bit_nll", "unlearned", "forget"].per_track == pytest.approx(expected)
    assert found["quantised_4bit_nll", "unlearned", "forget"].value != shared.nll("unlearned", "forget")
    assert found["quantised_8bit_verbatim", "base", "forget"].value == 1
    assert found["quantised_8bit_verbatim", "gold", "forget"].value == 0
    assert found["quantised_8bit_verbatim", "gold", "retain"].value == 1
    for role, model in roles.items():
        assert torch.equal(model.module["table"], before[role]["table"])


def test_tracks_that_were_hidden_below_the_rounding_come_back():
    """What the attack is for: a change smaller than half a level is rounded away."""
    base = models()["base"]
    hidden = base.clone()
    with torch.no_grad():
        hidden.module["table"].copy_(rounded(hidden.module["table"], 4))  # base lies on the levels
        base.module["table"].copy_(hidden.module["table"])
        step = hidden.module["table"].abs().flatten(1).amax(1) / 7
        noise = torch.Generator().manual_seed(0)
        for track in (1, 2, 3):
            table = hidden.module["table"][track]
            inner = table.abs() < 6.5 * step[track]  # what is largest sets the levels, and stays
            table += 0.4 * step[track] * inner * torch.rand(2, 12, 11, generator=noise).sub(1)
    roles = {"base": base, "unlearned": hidden}
    found = rows(SharedEvaluation(roles, {"forget": clips()["forget"]}, embedder=None))
    shared = SharedEvaluation(roles, {"forget": clips()["forget"]}, embedder=None)
    fell = np.mean(list(shared.nll("unlearned", "forget").values()))
    back = found["quantised_4bit_nll", "unlearned", "forget"].value
    own = found["quantised_4bit_nll", "base", "forget"].value
    assert abs(back - own) < abs(fell - own)


def test_without_tokens_there_is_a_loss_and_no_replay():
    sets = {"forget": latent_clips(2), "retain": []}
    found = rows(SharedEvaluation({"unlearned": LatentBackend()}, sets, embedder=None))
    assert found["quantised_4bit_nll", "unlearned", "forget"].unit == "loss"
    assert found["quantised_4bit_verbatim", "unlearned", "forget"].why == "not measured: the model has no tokens"
    assert found["quantised_4bit_nll", "unlearned", "retain"].why == "not measured: there are no retain tracks"
