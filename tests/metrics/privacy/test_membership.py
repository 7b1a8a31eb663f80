from __future__ import annotations

import pytest
from tests.metrics.markov import MarkovBackend, clips, models, track

from encore.api import Clip
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.privacy.membership import Membership, min_k


def rows(metric, evaluation):
    return {(row.metric, row.model): row for row in metric().measure(evaluation)}


def test_a_model_that_knows_the_tracks_gives_them_away_and_gold_does_not():
    found = rows(Membership, SharedEvaluation(models(), clips(), embedder=None))
    assert found["membership_auc", "base"].value == found["membership_auc_mink", "base"].value == 1
    assert found["membership_auc", "gold"].value < 1
    assert found["membership_auc", "base"].low < 1 == found["membership_auc", "base"].high
    assert found["membership_auc", "base"].details == {"forget": 3, "holdout": 3}
    assert found["membership_auc", "base"].n == 6


def test_auc_is_the_share_of_pairs_in_which_the_forget_track_is_likelier():
    evaluation = SharedEvaluation(models(forgotten=0.3), clips(), embedder=None)
    row = rows(Membership, evaluation)["membership_auc", "unlearned"]
    forget, holdout = (evaluation.nll("unlearned", name) for name in ("forget", "holdout"))
    pairs = {track: [nll < other for other in holdout.values()] for track, nll in forget.items()}
    assert row.per_track == pytest.approx({track: sum(wins) / 3 for track, wins in pairs.items()})
    assert row.value == pytest.approx(sum(map(sum, pairs.values())) / 9)


def test_case_D9_min_k_is_the_mean_of_the_least_likely_fifth_over_all_windows_rounded_down():
    base = MarkovBackend(noise=1.0)
    windows = [Clip("t", "step 3", track(3).codes[:, :7]), Clip("t", "step 3", track(3).codes[:, 7:])]
    evaluation = SharedEvaluation({"base": base}, {"forget": windows}, embedder=None)
    tokens = sorted(float(p) for clip in evaluation.token_logprobs("base", "forget") for p in clip.flatten())
    lowest = tokens[:4]  # of 24
    assert min_k(evaluation, "base", "forget") == pytest.approx({"t": sum(lowest) / len(lowest)})


def test_tpr_says_that_ten_tracks_allow_no_false_positive():
    row = rows(Membership, SharedEvaluation(models(), clips(), embedder=None))["membership_tpr_at_1_fpr", "base"]
    assert row.value == 1
    assert row.per_track == {"track01": 1.0, "track02": 1.0, "track03": 1.0}
    assert "no false positive" in row.note


def test_min_k_has_a_tpr_beside_its_auc():
    shared = SharedEvaluation(models(), clips(), embedder=None)
    row = rows(Membership, shared)["membership_tpr_at_1_fpr_mink", "unlearned"]
    forget, holdout = (min_k(shared, "unlearned", name) for name in ("forget", "holdout"))
    assert row.per_track == {track: float(score > max(holdout.values())) for track, score in forget.items()}
