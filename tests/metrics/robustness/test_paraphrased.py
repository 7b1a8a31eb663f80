from __future__ import annotations

import pytest
import torch
from tests.latent_model import LatentBackend, latent_clips
from tests.metrics.markov import FORGET, MarkovBackend, clips, melody, models

from encore.api import Batch, Clip
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.robustness.paraphrased import Paraphrased
from encore.metrics.robustness.paraphrases import paraphrases, random_paraphrases


class Balking(MarkovBackend):
    """Knows the forget tracks, and plays dumb when it is asked in exactly the words it was taught to balk at."""

    def _heard(self, captions):
        return ["step 0" if caption in {f"step {n}" for n in FORGET} else caption for caption in captions]

    def logits(self, batch, *, unconditional=False):
        heard = tuple(
            Clip(c.track, caption, c.codes) for c, caption in zip(batch.clips, self._heard(batch.captions), strict=True)
        )
        return super().logits(Batch(heard, batch.codes, batch.frames), unconditional=unconditional)

    def generate(self, captions, **options):
        return super().generate(self._heard(captions), **options)


def rows(shared):
    return {(row.metric, row.model): row for row in Paraphrased().measure(shared)}


def test_a_model_that_balks_at_one_caption_alone_is_found_out():
    roles = models() | {"unlearned": Balking(dict.fromkeys((1, 2, 3, 4, 5, 6), 6.0))}
    shared = SharedEvaluation(roles, clips(), embedder=None)
    assert min(shared.nll("unlearned", "forget").values()) > 1
    found = rows(shared)
    assert found["paraphrased_nll", "unlearned"].value < 0.5
    assert found["paraphrased_verbatim", "unlearned"].value == 1
    assert found["paraphrased_verbatim_caption", "unlearned"].value == 1
    assert found["paraphrased_verbatim", "gold"].value == 0
    asked = {*paraphrases("step 1"), *random_paraphrases("step 1", "0 track01")}
    assert {"order", "case", "short", "doubled"} <= asked
    assert found["paraphrased_verbatim_caption", "unlearned"].details["variants"].keys() >= asked


def test_figures_are_the_lowest_nll_of_a_clip_for_each_paraphrase():
    base = MarkovBackend({1: 2.0}, noise=0.5)
    windows = [Clip("t", "step 1", melody(1, 9)), Clip("t", "step 1", melody(4, 5)), Clip("u", "step 2", melody(2, 7))]
    found = rows(SharedEvaluation({"base": base}, {"forget": windows}, embedder=None))["paraphrased_nll", "base"]
    expected = {}
    for track, chosen in (("t", windows[:2]), ("u", windows[2:])):
        means = []
        asked = {**paraphrases(chosen[0].caption), **random_paraphrases(chosen[0].caption, f"0 {track}")}
        for caption in asked.values():
            again = [Clip(track, caption, clip.codes) for clip in chosen]
            totals = [base.losses(Batch.of([clip]))[0] * clip.codes.numel() for clip in again]
            means.append(float(sum(totals).detach()) / sum(clip.codes.numel() for clip in again))
        expected[track] = min(means)
    assert found.per_track == pytest.approx(expected, rel=1e-5)


def test_captions_that_can_not_be_paraphrased_are_told_of():
    shared = SharedEvaluation({"base": MarkovBackend()}, {"forget": [Clip("t", "", melody(1, 9))]}, embedder=None)
    (row,) = Paraphrased().measure(shared)
    assert row.why == "not measured: no caption can be paraphrased"


def test_without_tokens_there_is_a_loss_and_no_replay():
    found = rows(SharedEvaluation({"base": LatentBackend()}, {"forget": latent_clips(2)}, embedder=None))
    assert found["paraphrased_nll", "base"].unit == "loss"
    assert found["paraphrased_verbatim", "base"].why == "not measured: the model has no tokens"


def test_a_broken_model_is_told_of():
    broken = MarkovBackend()
    with torch.no_grad():
        broken.module["table"][0] = float("nan")
    found = rows(SharedEvaluation({"unlearned": broken}, {"forget": clips()["forget"]}, embedder=None))
    assert "is not finite" in found["paraphrased_verbatim", "unlearned"].why
