from __future__ import annotations

import math

import pytest
import torch
from tests.metrics.markov import clips, models

from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.privacy.unlearning_inference import UnlearningInference, token_features


def rows(roles, sets=None):
    shared = SharedEvaluation(roles, sets or clips(), embedder=None)
    return {(row.metric.removeprefix("unlearning_inference_"), row.model): row for row in
            UnlearningInference().measure(shared)}  # fmt: skip


def test_features_of_a_token_by_hand():
    p = [0.5, 0.3, 0.2]
    (found,) = token_features(torch.tensor([p]).log() + 7, torch.tensor([2])).tolist()
    entropy = -sum(x * math.log(x) for x in p)
    assert found == pytest.approx([-math.log(0.2), entropy, math.log(0.5), math.log(3)], abs=1e-6)


def test_with_base_the_tracks_stand_out_from_both_sets_also_in_gold():
    found = rows(models())
    for model in ("unlearned", "gold"):
        assert found["auc_pair", model].value == 1
        assert found["auc_pair_retain", model].value == 1


def test_what_cannot_be_measured_says_why():
    without_base = {role: model for role, model in models().items() if role != "base"}
    assert "no base model" in rows(without_base)["auc_pair", "unlearned"].why
    few = {name: members[:2] for name, members in clips().items()}
    assert "it takes 3 of each" in rows(models(), few)["p", "unlearned"].why
    no_retain = {name: members for name, members in clips().items() if name != "retain"}
    assert "no retain tracks" in rows(models(), no_retain)["auc_pair_retain", "unlearned"].why
