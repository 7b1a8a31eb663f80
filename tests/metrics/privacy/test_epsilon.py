from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from tests.metrics.markov import MarkovBackend, clips, models, track

from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.measure import measure
from encore.metrics.privacy.epsilon import DELTA, Epsilon, epsilon


def distributions(n, codes, seed, spread=2.0):
    drawn = np.random.default_rng(seed).normal(scale=spread, size=(n, codes))
    return drawn - np.log(np.exp(drawn).sum(1, keepdims=True))


def hockey_stick(p, q, eps):
    """Of two distributions, by its definition: the largest P(S) - e^ε Q(S) over all sets S of codes."""
    codes = range(len(p))
    sets = itertools.chain.from_iterable(itertools.combinations(codes, size) for size in range(len(p) + 1))
    return max(sum(p[v] for v in chosen) - math.exp(eps) * sum(q[v] for v in chosen) for chosen in sets)


def holds(first, second, eps, delta):
    p, q = np.exp(first), np.exp(second)
    there = np.mean([hockey_stick(a, b, eps) for a, b in zip(p, q, strict=True)])
    back = np.mean([hockey_stick(b, a, eps) for a, b in zip(p, q, strict=True)])
    return max(there, back) <= delta


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("delta", [0.0, 0.01, 0.05, 0.3])
def test_it_is_the_smallest_by_the_definition_over_all_sets_of_codes(seed, delta):
    first, second = distributions(3, 5, seed), distributions(3, 5, seed + 10)
    found = epsilon(first, second, delta)
    assert found > 0
    assert holds(first, second, found + 1e-8, delta + 1e-12)
    assert not holds(first, second, found - 1e-6, delta)
    assert epsilon(second, first, delta) == pytest.approx(found)


def test_one_coin_by_hand():
    """max(.9 - e^ε .5, .5 - e^ε .1) = .05 where e^ε = 4.5."""
    fair, loaded = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    assert epsilon(loaded, fair, 0.05) == pytest.approx(math.log(4.5))
    assert epsilon(loaded, fair, 0.0) == pytest.approx(math.log(5))
    assert epsilon(loaded, fair, 0.4) == 0.0  # their total variation
    assert epsilon(fair, fair, 0.0) == 0.0


def test_a_difference_beyond_single_precision_is_measured():
    sure = np.array([[0.0, -300.0]])
    assert epsilon(sure, sure[:, ::-1], 0.05) == pytest.approx(300 + math.log(0.95))


def test_rows_are_those_of_the_models_tables():
    roles, sets = models(1.0), clips()
    shared = SharedEvaluation(roles, sets, embedder=None)
    found = {row.model: row for row in Epsilon().measure(shared)}
    assert list(found) == ["base", "unlearned", "gold2"]
    assert found["base"].value > found["unlearned"].value > found["gold2"].value
    for role, row in found.items():
        for clip in sets["forget"]:
            tables = [_rows(roles[name], clip) for name in (role, "gold")]
            assert row.per_track[clip.track] == pytest.approx(epsilon(*tables, DELTA))
    assert "seed noise" in found["gold2"].note
    assert found["base"].details == {"delta": DELTA}


def _rows(model, clip):
    step, states = int(clip.caption.split()[1]), torch.nn.functional.pad(clip.codes[:, :-1], (1, 0), value=11)
    table = model.module["table"].detach()[step].double().log_softmax(-1)
    return torch.cat([table[k, states[k]] for k in range(2)]).numpy()


def test_windows_of_a_track_are_one_track():
    sets = {"forget": [track(1, 12), track(1, 7), track(2, 12)]}
    shared = SharedEvaluation(models(), sets, embedder=None, batch=1)
    (row, *_) = Epsilon().measure(shared)
    both = [np.concatenate([_rows(models()[role], clip) for clip in sets["forget"][:2]]) for role in ("base", "gold")]
    assert row.n == 2
    assert row.per_track["track01"] == pytest.approx(epsilon(*both, DELTA))


def test_gold_itself_is_at_nothing_and_a_broken_model_is_told_of():
    shared = SharedEvaluation(models() | {"unlearned": models()["gold"]}, clips(), embedder=None)
    assert next(row.value for row in measure(shared, ["epsilon"]) if row.model == "unlearned") == 0.0
    broken = MarkovBackend()
    with torch.no_grad():
        broken.module["table"][1] = math.nan
    whys = [row.why for row in measure(shared.derive(models=models() | {"unlearned": broken}), ["epsilon"])]
    assert "is not finite" in whys[1]
    (alone,) = measure(SharedEvaluation({"gold": models()["gold"]}, clips(), embedder=None), ["epsilon"])
    assert alone.why == "not measured: there is no model to compare with gold"
    (none,) = measure(SharedEvaluation({"base": models()["base"]}, clips(), embedder=None), ["epsilon"])
    assert none.why == "not measured: no gold model was given (--gold)"
