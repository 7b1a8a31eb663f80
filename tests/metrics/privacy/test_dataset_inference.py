from __future__ import annotations

import statistics

import numpy as np
import pytest
from scipy import stats as scipy_stats
from tests.latent_model import LatentBackend, latent_clips
from tests.metrics.markov import MarkovBackend, models, track

from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.privacy.dataset_inference import DatasetInference, combined, infer, membership_features


def evaluation(roles=None) -> SharedEvaluation:
    sets = {"forget": [1, 2, 3, 4], "holdout": [5, 6, 7, 8, 9, 10]}
    return SharedEvaluation(
        roles or {"base": MarkovBackend(dict.fromkeys((1, 2, 3, 4), 6.0), noise=0.5), "gold": MarkovBackend(noise=0.5)},
        {name: [track(step, 30) for step in steps] for name, steps in sets.items()}, embedder=None,
    )  # fmt: skip


def test_p_is_that_of_the_mean_standardised_scores_by_hand():
    shared = evaluation()
    row = infer(shared, "gold")
    parts = [membership_features(shared, "gold", clips) for clips in ("forget", "holdout")]
    assert row.details["scores"] == list(parts[0]) == ["loss", "mink", "zlib", "minkpp", "gradnorm", "caption"]
    means = dict.fromkeys([*parts[0]["loss"], *parts[1]["loss"]], 0.0)
    for name in parts[0]:
        scores = {**parts[0][name], **parts[1][name]}
        centre, spread = statistics.fmean(scores.values()), statistics.pstdev(scores.values())
        for one in means:
            means[one] += (scores[one] - centre) / spread / len(parts[0])
    forget, holdout = ([means[one] for one in sorted(part["loss"])] for part in parts)
    assert row.value == pytest.approx(scipy_stats.mannwhitneyu(forget, holdout, method="exact").pvalue)
    assert row.details["auc"] == pytest.approx(np.mean([a > b for a in forget for b in holdout]))


def test_a_memorised_list_is_found_and_a_new_one_is_not():
    found = {row.model: row.value for row in DatasetInference().measure(evaluation())}
    assert found["base"] == pytest.approx(2 / 210)  # of ten tracks, the least
    assert found["gold"] > 0.05


def test_any_of_the_tracks_may_be_asked_about():
    shared = evaluation()
    row = infer(shared, "base", ["track01", "track02", "track03"])
    assert list(row.per_track) == ["track01", "track02", "track03"]
    assert row.n == 9
    assert "it takes 3 of each" in infer(shared, "base", ["track01"]).why


def test_a_score_without_spread_counts_for_nothing():
    assert combined(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist() == [-0.5, 0.5]


def test_without_tokens():
    backend = LatentBackend()
    sets = {"forget": latent_clips(4), "holdout": latent_clips(4)}
    (row,) = DatasetInference().measure(SharedEvaluation({"base": backend}, sets, embedder=None))
    assert row.details["scores"] == ["loss", "zlib", "gradnorm"]


def test_one_of_a_kind_is_not_measured():
    shared = SharedEvaluation(models(), {"forget": [track(1)], "holdout": [track(7)]}, embedder=None)
    assert all(row.value is None for row in DatasetInference().measure(shared))
