"""Against a loop over tokens that reads the Markov table itself."""

from __future__ import annotations

import math

import pytest
import torch
from tests.metrics.markov import K, MarkovBackend, V, clips, melody, models, track

from encore.api import Clip
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.memorization.nll import Nll


def by_hand(backend: MarkovBackend, clip: Clip, codebooks: range = range(K)) -> tuple[float, int]:
    """Sum of -log p over a clip's tokens, and how many."""
    table = backend.module["table"].detach().double()
    total = 0.0
    for k in codebooks:
        before = V
        for code in clip.codes[k].tolist():
            row = table[int(clip.caption.split()[1]), k, before].tolist()
            total -= row[code] - math.log(sum(math.exp(score) for score in row))
            before = code
    return total, len(codebooks) * clip.codes.shape[-1]


def rows(evaluation: SharedEvaluation):
    return {(row.metric, row.model, row.set): row for row in Nll().measure(evaluation)}


def test_rows_are_the_means_over_tracks_of_the_loop():
    roles, sets = models(forgotten=2.0), clips()
    found = rows(SharedEvaluation(roles, sets, embedder=None))
    for role, backend in roles.items():
        for name, chosen in sets.items():
            row = found["nll", role, name]
            expected = {clip.track: by_hand(backend, clip)[0] / by_hand(backend, clip)[1] for clip in chosen}
            assert row.per_track == pytest.approx(expected, rel=1e-5)
            assert row.value == pytest.approx(sum(expected.values()) / 3, rel=1e-5)
            assert row.low <= row.value <= row.high
            assert (row.n, row.unit) == (3, "nats/token")


def test_codebooks_have_rows_of_their_own_whose_mean_is_the_whole():
    roles, sets = models(), clips()
    found = rows(SharedEvaluation(roles, sets, embedder=None))
    for k in range(K):
        total, count = by_hand(roles["base"], sets["retain"][1], range(k, k + 1))
        assert found[f"nll_codebook_{k}", "base", "retain"].per_track["track05"] == pytest.approx(
            total / count, rel=1e-5
        )
    parts = [found[f"nll_codebook_{k}", "gold", "forget"].value for k in range(K)]
    assert sum(parts) / K == pytest.approx(found["nll", "gold", "forget"].value)


def test_the_beginning_is_the_first_fifth_of_a_second_of_the_first_window(monkeypatch):
    monkeypatch.setattr(MarkovBackend, "frame_rate", 20)
    base, frames = models()["base"], 4
    whole = melody(7, 4 * frames)
    first, second = Clip("t", "step 7", whole[:, : 2 * frames]), Clip("t", "step 7", whole[:, 2 * frames :])
    short = Clip("u", "step 5", melody(5, frames - 1))
    found = rows(SharedEvaluation({"base": base}, {"forget": [first, second, short]}, embedder=None))
    beginnings = {"t": Clip("t", "step 7", whole[:, :frames]), "u": short}
    totals = {name: by_hand(base, clip) for name, clip in beginnings.items()}
    expected = {name: total / count for name, (total, count) in totals.items()}
    assert found["nll_beginning", "base", "forget"].per_track == pytest.approx(expected, rel=1e-5)


def test_windows_of_a_track_count_by_their_tokens():
    base = models()["base"]
    whole = melody(7, 12)
    long, short = Clip("t", "step 7", whole[:, :9]), Clip("t", "step 7", whole[:, 9:])
    found = rows(SharedEvaluation({"base": base}, {"forget": [long, short]}, embedder=None))
    (a, n), (b, m) = by_hand(base, long), by_hand(base, short)
    assert found["nll", "base", "forget"].per_track == pytest.approx({"t": (a + b) / (n + m)}, rel=1e-5)
    assert found["nll", "base", "forget"].n == 1
    assert found["nll", "base", "forget"].low is None


def test_gap_to_gold_has_two_sides():
    def gap(forgotten: float) -> float:
        return rows(SharedEvaluation(models(forgotten), clips(), embedder=None))[
            "nll_gap_gold", "unlearned", "forget"
        ].value

    assert gap(6.0) < -0.5  # still knows them
    assert gap(0.0) == pytest.approx(0, abs=0.05)
    assert gap(-6.0) > 0.5  # shuns them


def test_gap_is_that_of_the_means_and_of_each_track():
    found = rows(SharedEvaluation(models(1.0), clips(), embedder=None))
    own, gold = found["nll", "unlearned", "forget"], found["nll", "gold", "forget"]
    gap = found["nll_gap_gold", "unlearned", "forget"]
    assert gap.value == pytest.approx(own.value / gold.value - 1)
    assert gap.per_track == pytest.approx({t: own.per_track[t] / gold.per_track[t] - 1 for t in own.per_track})
    assert gap.low < gap.value < gap.high


def test_case_D14_memorised_retain_has_rows_of_its_own():
    """Of the tracks whose NLL under base is below half of the held-out level, whatever other models make of them."""
    roles, sets = models(), clips()
    sets["retain"] = [*sets["retain"], track(10)]  # in the catalogue, and never learnt
    found = rows(SharedEvaluation(roles, sets, embedder=None))
    half = found["nll", "base", "holdout"].value / 2
    assert found["nll", "base", "retain"].details == {"memorised_below": pytest.approx(half)}
    assert found["nll", "base", "forget"].details == {"memorised": list(found["nll", "base", "forget"].per_track)}
    assert found["nll", "gold", "forget"].details == {"memorised": []}
    whole = found["nll", "unlearned", "retain"].per_track
    memorised, other = (found[f"nll_{part}", "unlearned", "retain"] for part in ("memorised", "not_memorised"))
    assert set(memorised.per_track) == {"track04", "track05", "track06"}
    assert other.per_track == {"track10": whole["track10"]}
    assert memorised.value == pytest.approx(sum(whole[name] for name in memorised.per_track) / 3)
    assert memorised.value < half < other.value


def test_parts_of_retain_that_are_not_there():
    found = rows(SharedEvaluation(models(), clips(), embedder=None))
    assert found["nll_not_memorised", "unlearned", "retain"].why == (
        "not measured: base has memorised all of the retain tracks"
    )
    alone = rows(SharedEvaluation({"unlearned": models()["unlearned"]}, clips(), embedder=None))
    assert not {"nll_memorised", "nll_not_memorised"} & {metric for metric, *_ in alone}  # base would say which


def test_what_is_not_there_is_said():
    found = rows(SharedEvaluation({"unlearned": models()["unlearned"]}, {"forget": [track(1)]}, embedder=None))
    assert found["nll", "unlearned", "holdout"].why == "not measured: there are no holdout tracks"
    assert found["nll_gap_gold", "unlearned", "forget"].why == "not measured: no gold model was given"
    assert torch.isfinite(torch.tensor(found["nll", "unlearned", "forget"].value))


def test_what_is_to_stay_is_compared_with_base_and_what_is_to_go_with_gold():
    found = Nll().measure(SharedEvaluation(models(), clips(), embedder=None))
    directions = {(row.set, row.direction) for row in found if row.metric != "nll_gap_gold"}
    assert directions == {("forget", "gold"), ("retain", "base"), ("holdout", "base")}
