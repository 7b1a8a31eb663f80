from __future__ import annotations

import itertools
import math

import pytest
import torch
from tests.latent_model import LatentBackend, latent_clips
from tests.metrics.markov import MarkovBackend, clips, models

from encore import stats
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.measure import measure
from encore.metrics.privacy.gold_tests import GoldKs, PrivLeak
from encore.metrics.privacy.membership import min_k
from encore.store.metrics_json import read_metrics, write_metrics


def rows(metric, shared):
    return {row.model: row for row in metric().measure(shared)}


def evaluation(forgotten=0.5, **changes):
    return SharedEvaluation(models(forgotten) | changes, clips(), embedder=None)


def test_ks_is_the_share_of_relabellings_with_as_large_a_distance():
    shared = evaluation()
    own, gold = (list(shared.nll(role, "forget").values()) for role in ("unlearned", "gold"))

    def distance(one, two):
        cuts = one + two
        return max(abs(sum(x <= c for x in one) / len(one) - sum(x <= c for x in two) / len(two)) for c in cuts)

    everything, observed = own + gold, distance(own, gold)
    splits = [
        distance([everything[i] for i in split], [everything[i] for i in range(6) if i not in split])
        for split in itertools.combinations(range(6), 3)
    ]
    expected = sum(d >= observed - 1e-12 for d in splits) / len(splits)
    row = rows(GoldKs, shared)["unlearned"]
    assert row.value == pytest.approx(expected)
    assert row.details["D"] == pytest.approx(observed)
    assert "3 tracks per side can hardly detect a D below 1.00" in row.note


def test_a_shift_that_all_tracks_share_goes_unseen_by_ks_and_is_told_of():
    """NLLs of eight tracks that differ by far more than each of them moved."""
    gold = {f"t{i}": 1.0 + i for i in range(8)}
    shared = SharedEvaluation({role: models()[role] for role in ("unlearned", "gold")}, clips(), embedder=None)
    shared._results["nll", "gold", "forget"] = gold
    shared._results["nll", "unlearned", "forget"] = {track: nll + 0.1 for track, nll in gold.items()}
    row = rows(GoldKs, shared)["unlearned"]
    assert row.value > 0.99
    assert row.details["wilcoxon_p"] == pytest.approx(2 / 2**8)
    assert row.note.endswith("paired by track, Wilcoxon's p is 0.0078")
    shared._results["nll", "unlearned", "forget"] = gold
    assert rows(GoldKs, shared)["unlearned"].details["wilcoxon_p"] == 1


def test_ks_sees_both_sides():
    knows, shuns = (rows(GoldKs, evaluation(strength))["unlearned"].details["D"] for strength in (6.0, -6.0))
    assert knows == shuns == 1


def test_case_D9_privleak_is_that_of_muse_counted_by_hand():
    shared = evaluation()

    def against(role):
        members, others = (min_k(shared, role, name, 0.4).values() for name in ("forget", "holdout"))
        return 1 - sum(m > o for m in members for o in others) / 9

    found = rows(PrivLeak, shared)
    assert found["unlearned"].value == pytest.approx((against("unlearned") - against("gold")) / against("gold"))
    assert found["base"].value == -1
    assert found["base"].low == -1 < found["base"].high - 0.1  # three tracks against three are not many
    low, high = stats.auc_interval(1 - against("unlearned"), 3, 3)
    ends = [(1 - end - against("gold")) / against("gold") for end in (high, low)]
    assert (found["unlearned"].low, found["unlearned"].high) == pytest.approx(ends)
    assert found["base"].details == {"score": "mink", "forget": 3, "holdout": 3}


def test_privleak_is_above_zero_where_the_tracks_are_shunned():
    assert rows(PrivLeak, evaluation(-6.0))["unlearned"].value >= 0


def test_privleak_needs_a_gold_that_does_not_tell_the_sets_apart():
    row = rows(PrivLeak, evaluation(gold=models()["base"]))["unlearned"]
    assert row.why.startswith("not measured: gold's AUC is 1")


@pytest.mark.parametrize("name", ["gold_ks", "privleak"])
def test_without_gold_it_says_so(name):
    shared = SharedEvaluation({"unlearned": models()["unlearned"]}, clips(), embedder=None)
    (row,) = measure(shared, [name])
    assert row.why == "not measured: no gold model was given (--gold)"


@pytest.mark.parametrize("metric", [GoldKs, PrivLeak])
def test_a_broken_model_is_told_of(metric):
    broken = MarkovBackend()
    with torch.no_grad():
        broken.module["table"][2] = math.nan
    row = rows(metric, evaluation(unlearned=broken))["unlearned"]
    assert row.why == "not measured: the model's likelihood of track02 is not finite"


def test_without_tokens_both_work_on_the_loss():
    sets = {"forget": latent_clips(4), "holdout": latent_clips(4, first=4)}
    roles = {"unlearned": LatentBackend(), "gold": LatentBackend(seed=1)}
    shared = SharedEvaluation(roles, sets, embedder=None)
    assert rows(GoldKs, shared)["unlearned"].value is not None
    row = rows(PrivLeak, shared)["unlearned"]
    assert row.value is None or row.details["score"] == "loss"


def test_case_D9_a_row_carries_the_version_of_its_metrics_definition(tmp_path):
    rows = measure(evaluation(), ["privleak", "gold_ks"])
    assert {row.metric: row.version for row in rows} == {"privleak": 2, "gold_ks": 1}
    write_metrics(tmp_path / "metrics.json", rows)
    assert read_metrics(tmp_path / "metrics.json") == rows
