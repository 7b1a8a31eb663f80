from __future__ import annotations

import copy
import math

import pytest
import torch
from tests.latent_model import LatentBackend, latent_clips
from tests.metrics.markov import V, clips, models, track

from encore.api import Batch
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.robustness.relearn import (
    Relearn,
    RelearnFast,
    RelearnOne,
    RelearnOthers,
    evenly_spaced,
    relearning_curve,
)


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


# ---------------------------------------------------------------------------------------------- on other tracks


def test_training_on_others_is_watched_on_the_forget_tracks():
    roles, sets = models(forgotten=1.0), clips()
    shared = SharedEvaluation(roles, sets, embedder=None)
    found = {(row.metric, row.model): row for row in RelearnOthers().measure(shared)}
    assert {name for name, _ in found} == {"relearn_retain", "relearn_holdout"}
    row = found["relearn_retain", "unlearned"]
    assert row.details["after"] == [0, 1, 2, 4, 8]
    assert row.details["trained_on"] == ["track04", "track05", "track06"]
    assert row.details["curve"][0] == pytest.approx(sum(shared.nll("unlearned", "forget").values()) / 3, rel=1e-5)
    # Tables of captions are independent: what is learnt of other tracks only decays the forget tracks' own.
    decayed = roles["unlearned"].clone()
    with torch.no_grad():
        decayed.module["table"].mul_((1 - 2e-4 * 0.01) ** 8)
    expected = {clip.track: float(decayed.losses(Batch.of([clip]))[0].detach()) for clip in sets["forget"]}
    assert row.per_track == pytest.approx(expected, rel=1e-5)


def test_without_retain_or_holdout_it_says_so():
    shared = SharedEvaluation(models(), {"forget": clips()["forget"]}, embedder=None)
    whys = {row.metric: row.why for row in RelearnOthers().measure(shared)}
    assert whys == {
        "relearn_retain": "not measured: there are no retain tracks",
        "relearn_holdout": "not measured: there are no holdout tracks",
    }


def test_training_on_one_is_watched_on_the_rest():
    shared = SharedEvaluation(models(forgotten=1.0), clips(), embedder=None)
    row = {row.model: row for row in RelearnOne().measure(shared)}["unlearned"]
    assert row.details["trained_on"] == ["track01", "track02", "track03"]
    curves = {one: relearning_curve(shared, "unlearned", [track(one)], clips()["forget"]) for one in (1, 2, 3)}
    expected = {
        f"track0{n}": sum(curves[one][-1][f"track0{n}"] for one in (1, 2, 3) if one != n) / 2 for n in (1, 2, 3)
    }
    assert row.per_track == pytest.approx(expected)
    assert curves[1][-1]["track01"] < expected["track01"]  # the one it trained on would have shown


def test_one_track_alone_has_no_others():
    (row,) = RelearnOne().measure(SharedEvaluation(models(), {"forget": [track(1)]}, embedder=None))
    assert row.why == "not measured: there is only one forget track"


def test_tracks_are_spread_over_a_set():
    chosen = [track(n, name=f"t{n}") for n in range(10)]
    assert [clip.track for clip in evenly_spaced(chosen, 3)] == ["t0", "t3", "t6"]
    assert evenly_spaced(chosen, 20) == chosen


def test_without_tokens_all_of_it_works_on_the_loss():
    sets = {"forget": latent_clips(2), "retain": latent_clips(3, first=2), "holdout": latent_clips(2, first=5)}
    shared = SharedEvaluation({"unlearned": LatentBackend()}, sets, embedder=None)
    for metric in (RelearnOthers, RelearnOne):
        for row in metric().measure(shared):
            assert row.value is not None
            assert row.unit == "loss"


def test_the_faster_attack_takes_the_same_steps_at_five_times_the_rate():
    shared = SharedEvaluation(models(forgotten=1.0), clips(), embedder=None)
    fast, slow = ({row.model: row for row in metric.measure(shared)} for metric in (RelearnFast(), Relearn()))
    assert {row.metric for row in fast.values()} == {"relearn_fast"}
    for role, row in fast.items():
        assert (row.details["lr"], slow[role].details["lr"]) == (1e-3, 2e-4)
        assert row.details["curve"][0] == pytest.approx(slow[role].details["curve"][0])
        # Adam's first steps are about the rate's size whatever the gradient: five times the way, while it is short
        ways = [one.details["curve"][0] - one.details["curve"][1] for one in (row, slow[role])]
        assert ways[0] == pytest.approx(5 * ways[1], rel=0.05), role
