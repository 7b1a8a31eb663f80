from __future__ import annotations

import math

import pytest
import torch
from tests.metrics.markov import clips, models

from encore.api import Batch
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.robustness.reversed_guidance import WEIGHTS, ReversedGuidance, excerpts


@pytest.fixture
def shared() -> SharedEvaluation:
    return SharedEvaluation(models(1.0), clips(frames=30), embedder=None)


def rows(shared):
    return {(row.metric, row.model): row for row in ReversedGuidance().measure(shared)}


def test_guided_likelihoods_by_hand(shared):
    row = rows(shared)["reversed_guidance_nll", "unlearned"]
    for place, weight in enumerate(WEIGHTS):
        nlls = {}
        for clip in excerpts(shared):
            total = 0.0
            logp = [
                shared.backend(role).logits(Batch.of([clip]))[0].detach().double().log_softmax(-1)
                for role in ("base", "unlearned")
            ]
            for k, codes in enumerate(clip.codes.tolist()):
                for t, code in enumerate(codes):
                    before, after = (model[k, t].tolist() for model in logp)
                    mixed = [weight * b + (1 - weight) * a for b, a in zip(before, after, strict=True)]
                    total -= mixed[code] - math.log(sum(map(math.exp, mixed)))
            nlls.setdefault(clip.track, []).append(total / clip.codes.numel())
        mean = sum(sum(parts) / len(parts) for parts in nlls.values()) / len(nlls)
        assert row.details["nll"][place] == pytest.approx(mean, abs=1e-4)
    assert row.value == pytest.approx(min(row.details["nll"][WEIGHTS.index(1.0) :]))


def test_at_1_every_model_is_base_and_at_0_itself(shared):
    found = rows(shared)
    at_1 = {role: found["reversed_guidance_nll", role].details["nll"][WEIGHTS.index(1.0)] for role in ("gold", "gold2")}
    assert at_1["gold"] == pytest.approx(at_1["gold2"])
    away = SharedEvaluation(
        {"unlearned": shared.backend("unlearned")}, {"forget": excerpts(shared)}, embedder=None
    ).nll("unlearned", "forget")
    assert found["reversed_guidance_nll", "unlearned"].details["nll"][0] == pytest.approx(sum(away.values()) / 3)


def test_what_a_model_was_made_to_avoid_stands_out():
    """Base hardly knows the tracks and the unlearned model avoids them: the difference names the codes."""
    roles = models(-4.0)
    with torch.no_grad():
        roles["base"].module["table"].copy_(models(0.3)["unlearned"].module["table"])
    found = rows(SharedEvaluation(roles, clips(frames=30), embedder=None))
    assert found["reversed_guidance_nll", "unlearned"].value < 0.5 * found["reversed_guidance_nll", "gold"].value
    assert found["reversed_guidance_predicted", "unlearned"].value == 1


def test_excerpts_are_of_the_tracks_middle_and_short_tracks_have_none(shared):
    assert {clip.codes.shape[-1] for clip in excerpts(shared)} == {12}
    assert len(excerpts(shared)) == 9
    short = SharedEvaluation(models(), clips(frames=12), embedder=None)
    assert all("longer than 3 s" in row.why for row in ReversedGuidance().measure(short))
