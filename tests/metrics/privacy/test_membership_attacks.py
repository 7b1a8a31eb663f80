"""Each score against a slow one of its own: loops over tokens and codes, and one gradient at a time."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from tests.latent_model import LatentBackend, latent_clips
from tests.metrics.markov import MarkovBackend, clips, models, track
from tests.tiny_model import CAPTIONS, write_tiny_musicgen

from encore import stats
from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.privacy.membership_attacks import (
    ATTACKS,
    MembershipAttacks,
    caption_contrast,
    gradient_norm,
    gradient_norms,
    min_k_plus,
    reference_gap,
    standardised,
    zlib_score,
)


def evaluation(**changes):
    return SharedEvaluation(models(forgotten=0.5) | changes, clips(), embedder=None)


def rows(shared):
    return {(row.metric, row.model): row for row in MembershipAttacks().measure(shared)}


def by_autograd(backend, clip) -> float:
    weights = list(backend.module.parameters())
    gradients = torch.autograd.grad(backend.losses(Batch.of([clip])).sum(), weights, allow_unused=True)
    return math.sqrt(sum(float(g.square().sum()) for g in gradients if g is not None))


def test_a_model_that_knows_the_tracks_gives_them_away_in_every_way_and_gold_does_not():
    found = rows(evaluation())
    for name in ("zlib", "minkpp", "gradnorm", "reference", "caption"):
        assert found[f"membership_auc_{name}", "base"].value == 1
        assert found[f"membership_tpr_at_1_fpr_{name}", "base"].value == 1
        assert found[f"membership_auc_{name}", "gold"].value < 1
    assert found["membership_p", "base"].details["attacks"].keys() == ATTACKS.keys()


def test_zlib_is_the_nll_over_the_size_of_the_code_stream():
    shared = evaluation()
    found = zlib_score(shared, "base", "forget")
    for clip in shared.clips["forget"]:
        stream = clip.codes.T.to(torch.int16).contiguous().numpy().tobytes()
        nll = -float(shared.token_logprobs("base", "forget")[shared.clips["forget"].index(clip)].sum())
        assert found[clip.track] == pytest.approx(-nll / len(zlib.compress(stream, 9)))


def test_min_k_plus_is_the_loop_over_tokens_and_codes():
    backend = MarkovBackend({3: 1.0}, noise=1.0)
    windows = [Clip("t", "step 3", track(3).codes[:, :7]), Clip("t", "step 3", track(4).codes[:, 7:])]
    scores = []
    for clip in windows:
        batch = Batch.of([clip])
        for row, code in zip(backend.logits(batch)[0].flatten(0, 1), clip.codes.flatten(), strict=True):
            p = [math.exp(s) / sum(math.exp(o) for o in row.tolist()) for s in row.tolist()]
            mean = sum(q * math.log(q) for q in p)
            spread = math.sqrt(sum(q * math.log(q) ** 2 for q in p) - mean**2)
            scores.append((math.log(p[int(code)]) - mean) / spread)
    lowest = sorted(scores)[: int(0.2 * len(scores))]
    shared = SharedEvaluation({"base": backend}, {"forget": windows}, embedder=None)
    assert min_k_plus(shared, "base", "forget") == pytest.approx({"t": sum(lowest) / len(lowest)}, rel=1e-4)


def test_a_prediction_without_spread_counts_nothing():
    sure, uniform = [0.0, 1e4, 0.0], [2.0, 2.0, 2.0]
    assert standardised(torch.tensor([sure, uniform]), torch.tensor([1, 2])).tolist() == [0.0, 0.0]
    assert standardised(torch.tensor([sure]), torch.tensor([0]))[0] < -1e6


def test_gradient_norms_are_those_of_a_backward_pass_a_clip(tmp_path):
    model = MusicgenBackend.load(str(write_tiny_musicgen(tmp_path)))
    random = torch.Generator().manual_seed(0)
    chosen = [Clip(str(i), CAPTIONS[i % 3], torch.randint(0, 32, (2, 12 + i), generator=random)) for i in range(3)]
    assert gradient_norms(model, chosen).tolist() == pytest.approx([by_autograd(model, c) for c in chosen], rel=1e-4)
    assert all(weight.grad is None for weight in model.module.parameters())


def test_gradient_norms_where_one_pass_can_not_give_them():
    backend, (first, second) = MarkovBackend({1: 2.0}, noise=0.3), (track(1), track(2))
    windows = [first, Clip("track01", "step 1", track(5).codes), second]
    shared = SharedEvaluation({"base": backend}, {"forget": windows}, embedder=None)
    a, b, c = (by_autograd(backend, clip) for clip in windows)
    assert gradient_norm(shared, "base", "forget") == pytest.approx({"track01": -(a + b) / 2, "track02": -c}, rel=1e-5)


def test_the_reference_is_gold_and_gold2_for_gold():
    shared = evaluation()
    nll = {role: shared.nll(role, "forget") for role in ("base", "gold", "gold2")}
    gaps = {"base": "gold", "gold2": "gold", "gold": "gold2"}
    for model, other in gaps.items():
        expected = {track: nll[other][track] - nll[model][track] for track in nll[model]}
        assert reference_gap(shared, model, "forget") == pytest.approx(expected)


def test_caption_contrast_is_what_the_caption_adds_a_token():
    shared = evaluation()
    with_it, without = (
        shared.token_logprobs("base", "forget", unconditional=unconditional)[0] for unconditional in (False, True)
    )
    expected = float((with_it - without).mean())
    assert caption_contrast(shared, "base", "forget")["track01"] == pytest.approx(expected, rel=1e-5)


def test_all_attacks_are_tested_together_and_holm_counts_them():
    shared = evaluation()
    row = rows(shared)["membership_p", "unlearned"]
    attacks = row.details["attacks"]
    loss = [[-nll for nll in shared.nll("unlearned", name).values()] for name in ("forget", "holdout")]
    assert attacks["loss"]["p"] == pytest.approx(stats.rank_test(*loss))
    expected = stats.holm([attack["p"] for attack in attacks.values()])
    assert [attack["p_holm"] for attack in attacks.values()] == pytest.approx(expected)
    assert row.value == min(expected)
    assert row.details["strongest"] in attacks
    single = rows(shared)["membership_p", "base"].per_track  # known by heart, each above all holdout tracks
    assert list(single.values()) == [0.75] * 3  # 3 / (3 + 1) after Holm


def test_sets_that_differ_without_a_model_are_told_of_beside_the_test():
    generator = torch.Generator().manual_seed(0)
    sets = {
        "forget": [track(step, 60) for step in (1, 2, 3)],
        "holdout": [Clip(f"r{i}", "step 1", torch.randint(0, 11, (2, 60), generator=generator)) for i in range(3)],
    }
    shared = SharedEvaluation({"base": MarkovBackend()}, sets, embedder=None)
    assert "without any model" in rows(shared)["membership_p", "base"].note


def test_without_gold_or_tokens_it_says_what_was_not_measured():
    found = rows(SharedEvaluation({"unlearned": models()["unlearned"]}, clips(), embedder=None))
    assert found["membership_auc_reference", "unlearned"].why == "not measured: no gold model was given"
    assert "reference" not in found["membership_p", "unlearned"].details["attacks"]
    latent = {"forget": latent_clips(3), "holdout": latent_clips(3, first=3)}
    found = rows(SharedEvaluation({"unlearned": LatentBackend()}, latent, embedder=None))
    for name in ("minkpp", "caption"):
        assert found[f"membership_auc_{name}", "unlearned"].why == "not measured: the model has no tokens"
    for name in ("zlib", "gradnorm"):
        assert found[f"membership_auc_{name}", "unlearned"].value is not None
    assert found["membership_p", "unlearned"].details["attacks"].keys() == {"loss", "zlib", "gradnorm"}


def test_a_broken_model_has_no_score():
    broken = MarkovBackend()
    with torch.no_grad():
        broken.module["table"][1] = math.nan
    found = rows(evaluation(unlearned=broken))
    assert found["membership_auc_zlib", "unlearned"].value is None
    assert found["membership_p", "unlearned"].why == "not measured: no attack has a score for every track"
