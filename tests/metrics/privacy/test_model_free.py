from __future__ import annotations

import math
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from tests.latent_model import LatentBackend, latent_clips
from tests.metrics.markov import MarkovBackend, track

from encore.api import Clip
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.privacy.membership_attacks import MembershipAttacks
from encore.metrics.privacy.model_free import SMOOTHING, ModelFreeBaseline, pairs_won


def rows(metric, evaluation):
    return {(row.metric, row.model): row for row in metric().measure(evaluation)}


def baseline(forget, holdout, seed=0):
    sets = {"forget": forget, "holdout": holdout}
    shared = SharedEvaluation({"base": MarkovBackend()}, sets, embedder=None, seed=seed)
    return {row.metric.removeprefix("membership_auc_baseline"): row for row in ModelFreeBaseline().measure(shared)}


def drawn(count, chances, seed, name="t", caption="step 1", frames=60):
    """Clips of codes that are drawn independently: nothing that zlib or a caption's length could see."""
    random = np.random.default_rng(seed)
    return [
        Clip(f"{name}{i}", caption, torch.from_numpy(random.choice(11, (2, frames), p=chances))) for i in range(count)
    ]


EVEN = np.full(11, 1 / 11)
TILTED = np.r_[np.full(6, 0.13), np.full(5, 0.044)]


def test_the_baseline_reads_no_model_and_warns_where_the_sets_differ():
    generator = torch.Generator().manual_seed(0)
    simple = [track(step, 60) for step in (1, 2, 3)]
    random = [Clip(f"r{i}", "step 1", torch.randint(0, 11, (2, 60), generator=generator)) for i in range(3)]
    base = MarkovBackend()
    found = rows(
        ModelFreeBaseline, SharedEvaluation({"base": base}, {"forget": simple, "holdout": random}, embedder=None)
    )
    size = found["membership_auc_baseline", "none"]
    assert size.value == 1
    assert "without any model" in size.note
    assert found["membership_auc_baseline_caption", "none"].value == 0.5
    assert found["membership_auc_baseline_caption", "none"].note is None


def test_the_baseline_score_is_the_size_of_the_code_stream():
    sets = {"forget": [track(2, 20)], "holdout": [track(3, 40)]}
    sizes = {
        name: len(zlib.compress(chosen[0].codes.T.to(torch.int16).contiguous().numpy().tobytes(), 9))
        / chosen[0].codes.numel()
        for name, chosen in sets.items()
    }
    row = rows(ModelFreeBaseline, SharedEvaluation({"base": MarkovBackend()}, sets, embedder=None))[
        "membership_auc_baseline", "none"
    ]
    assert row.value == float(sizes["forget"] < sizes["holdout"])


def by_hand(tracks, first):
    """Of each pair, both scores under unigrams of all tracks but the pair."""
    vocabulary = {item for track in tracks for item in track}

    def log_odds(track, members, others):
        found = []
        for chosen in (members, others):
            total = sum((one for one in chosen), Counter())
            size = sum(total.values()) + SMOOTHING * len(vocabulary)
            found.append(sum(n * math.log((total[item] + SMOOTHING) / size) for item, n in track.items()))
        return (found[0] - found[1]) / sum(track.values())

    ours = [track for track, own in zip(tracks, first, strict=True) if own]
    theirs = [track for track, own in zip(tracks, first, strict=True) if not own]
    return [
        [
            log_odds(one, [t for t in ours if t is not one], [t for t in theirs if t is not two])
            > log_odds(two, [t for t in ours if t is not one], [t for t in theirs if t is not two])
            for two in theirs
        ]
        for one in ours
    ]


def test_pairs_are_those_of_unigrams_counted_by_hand():
    random = np.random.default_rng(0)
    tracks = [Counter(random.integers(0, 7, 12).tolist()) for _ in range(7)]
    counts = np.array([[track[item] for item in range(7)] for track in tracks], float)
    first = np.array([True, False, True, True, False, False, True])
    assert pairs_won(counts, first).tolist() == by_hand(tracks, first)


def test_other_codes_are_told_apart_where_neither_compression_nor_captions_do():
    found = baseline(drawn(8, TILTED, 0), drawn(10, TILTED[::-1], 1, "h"))
    assert abs(found[""].value - 0.5) < 0.3
    assert found["_codes"].value > 0.95
    assert found["_codes"].details["p_holm"] < 0.05
    assert found["_codes"].note == (
        f"forget and holdout differ without any model (AUC of the baseline {found['_codes'].value:.2f}, by the "
        "frequency of codes): no membership AUC is reliable"
    )
    assert found["_words"].value == 0.5  # one caption for all
    assert found["_words"].note is None


def test_other_words_are_told_apart_where_captions_are_as_long():
    forget = [Clip(f"f{i}", f"a calm flute {i}", track(1, 30).codes) for i in range(8)]
    holdout = [Clip(f"h{i}", f"a loud drums {i}", track(1, 30).codes) for i in range(9)]
    found = baseline(forget, holdout)
    assert found["_caption"].value == found["_codes"].value == 0.5
    assert found["_words"].value == 1
    assert "by the captions' words" in found["_words"].note


def test_sets_of_one_source_are_not_warned_of_by_chance():
    """The AUC of learned scores is about .5 in the mean, and the correction keeps warnings as rare as it says."""
    found = [baseline(drawn(5, EVEN, 2 * i), drawn(6, EVEN, 2 * i + 1, "h"), seed=i) for i in range(40)]
    areas = [one["_codes"].value for one in found]
    assert abs(np.mean(areas) - 0.5) < 3 * np.std(areas) / math.sqrt(len(areas))
    assert sum(one["_codes"].note is not None for one in found) <= 3
    assert all(one[name].details["p_holm"] >= one[name].details["p"] for one in found for name in one)


def test_p_is_after_holm_over_all_scores():
    details = [row.details for row in baseline(drawn(8, TILTED, 0), drawn(10, TILTED[::-1], 1, "h")).values()]
    ordered = sorted(details, key=lambda one: one["p"])
    assert ordered[0]["p_holm"] == pytest.approx(4 * ordered[0]["p"])
    assert "p" in ordered[0]


def test_membership_has_the_warning_of_the_surest_score():
    sets = {"forget": drawn(8, TILTED, 0), "holdout": drawn(10, TILTED[::-1], 1, "h")}
    shared = SharedEvaluation({"base": MarkovBackend()}, sets, embedder=None)
    assert "by the frequency of codes" in rows(MembershipAttacks, shared)["membership_p", "base"].note


def test_latents_have_no_codes_to_count():
    sets = {"forget": latent_clips(2), "holdout": latent_clips(2, first=2)}
    found = rows(ModelFreeBaseline, SharedEvaluation({"base": LatentBackend()}, sets))
    assert found["membership_auc_baseline_codes", "none"].why == "not measured: the model has no tokens"
    assert found["membership_auc_baseline_words", "none"].value is not None
