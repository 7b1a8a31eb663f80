from __future__ import annotations

import copy
import math

import pytest
import torch
from tests.metrics.markov import V, clips, models

from encore.api import Batch
from encore.metrics.relearn import Relearn
from encore.runs.evaluate import SharedEvaluation


def rows(evaluation):
    return {row.model: row for row in Relearn().measure(evaluation)}


def by_hand(backend, chosen) -> list[float]:
    """AdamW written out: lr 2e-4, betas .9 and .999, eps 1e-8, weight decay .01, gradient norm at most 1."""
    twin = backend.clone()
    table = twin.module["table"]
    first, second, curve = torch.zeros_like(table), torch.zeros_like(table), []
    for step in range(1, 10):
        losses = [twin.losses(Batch.of([clip]))[0] for clip in chosen]
        curve.append(float((sum(losses) / len(losses)).detach()))
        (gradient,) = torch.autograd.grad(sum(losses) / len(losses), [table])
        gradient = gradient * min(1.0, 1.0 / (float(gradient.norm()) + 1e-6))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        with torch.no_grad():
            table.mul_(1 - 2e-4 * 0.01)
            table.sub_(2e-4 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8))
    return curve


def test_curve_is_that_of_adamw_written_out():
    roles, sets = models(forgotten=1.0), clips()
    found = rows(SharedEvaluation(roles, sets, embedder=None))
    assert list(found) == ["base", "unlearned", "gold", "control"]
    for role in ("base", "unlearned", "gold"):
        expected = by_hand(roles[role], sets["forget"])
        assert found[role].details["curve"] == pytest.approx(expected, rel=1e-5)
        assert found[role].value == pytest.approx(expected[8], rel=1e-5)
        assert found[role].value < expected[0]


def test_micro_batches_change_nothing():
    values = [
        rows(SharedEvaluation(models(), clips(), embedder=None, batch=batch))["unlearned"].value for batch in (1, 2, 16)
    ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_models_are_left_as_they_were():
    roles = models()
    before = {role: copy.deepcopy(backend.module.state_dict()) for role, backend in roles.items()}
    rows(SharedEvaluation(roles, clips(), embedder=None))
    for role, backend in roles.items():
        assert torch.equal(backend.module["table"], before[role]["table"])
        assert backend.module["table"].grad is None


def test_control_was_never_trained_and_is_seeded():
    def control(seed: int) -> float:
        return rows(SharedEvaluation(models(), clips(), embedder=None, seed=seed))["control"].value

    assert control(0) == control(0) != control(1)
    assert control(0) == pytest.approx(math.log(V), abs=0.05)
