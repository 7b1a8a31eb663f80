"""The default method: its loss on forget against slow float64 answers, a clip at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from tests.methods.encore_answers import (
    SHIFT,
    alike,
    backward_mean_of,
    between,
    costs_of,
    divergences_of,
    drawn_caption,
    levels_of,
    logprobs_of,
    made,
    make_clips,
    mean_of,
    moved,
    nll_of,
    start_mean,
    start_of,
    step_of,
)
from tests.tiny_model import CAPTIONS, write_tiny_musicgen

from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.methods.encore_teacher import (
    MEAN_SHIFT,
    SimilarCaptions,
    entropy_and_slope,
    mean_predictions,
    sharpened,
    shift_mean_toward,
)


@pytest.mark.parametrize(("seed", "sharp"), [(0, False), (1, False), (2, True)])
def test_forget_loss_is_divergence_from_the_estranged_self_plus_what_each_codebook_lacks(
    backend: MusicgenBackend, seed: int, sharp: bool
) -> None:
    """Two memorised clips and two that are not, of different lengths, under a shift and other captions.

    The first frames of the memorised ones have the same loss of their own; those of one of them are beyond their level.
    """
    holdout, retain, clips = make_clips(3, seed=5), make_clips(4, seed=1), make_clips(4)
    level = between(backend, clips, 2)
    method, session = made(backend, clips, retain, level, holdout=holdout, gamma=0.7, shift_seconds=SHIFT)
    model = moved(backend)
    taught = [nll_of(backend, clip).mean() < level / 2 for clip in clips]
    assert sorted(taught) == [False, False, True, True]
    of_new = [start_mean(costs_of(backend, start_of(clip))) for clip in holdout]
    assert method._start_target == pytest.approx(np.mean(of_new) - np.std(of_new), rel=1e-4)
    starts = [start_mean(costs_of(model, start_of(clip))) for clip in clips]
    method._start_target = float(np.mean([start for start, known in zip(starts, taught, strict=True) if known]))
    method._entropy = 0.0 if sharp else math.inf
    losses = method.forget_loss(step_of(model, session, seed), Batch.of(clips)).tolist()
    # The same draws, then everything again in float64, a clip and a codebook at a time.
    generator, of_base = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(session.seed)
    shift = int(torch.randint(7, (1,), generator=generator)) + 1
    new = [clip for clip in retain if nll_of(backend, clip).mean() >= level / 2]
    assert 0 < len(new) < 4
    captions = [drawn_caption(clip.caption, retain, generator) for clip in clips]
    start_captions = []
    for clip in clips:
        others = [other.caption for other in new if other.caption != clip.caption] or [new[0].caption]
        start_captions.append(others[int(torch.randint(len(others), (1,), generator=generator))])
    levels = levels_of(backend, clips, holdout, level / 2, 7)
    backward = [
        (clip, int(torch.randint(7, (1,), generator=of_base)) + 1, drawn_caption(clip.caption, retain, of_base))
        for _ in range(4)
        for clip, known in zip(clips, taught, strict=True)
        if known
    ]
    lacked = [0.0, 0.0]
    for clip, caption, start_caption, known, start, target, loss in zip(
        clips, captions, start_captions, taught, starts, levels, losses, strict=True
    ):
        own = logprobs_of(model, clip)
        drawn = [(begin, other) for one, begin, other in backward if one is clip]
        mean = backward_mean_of(backend, clip, drawn) if known else None
        strange = Clip(clip.track, caption, clip.codes[:, shift:])
        whole = divergences_of(model, strange, own[:, shift:], sharp, mean)
        first = divergences_of(model, Clip(clip.track, start_caption, clip.codes[:, :12]), own[:, :12], sharp)
        lacking = np.maximum(0, target - nll_of(model, clip)).mean()
        gap = max(0, method._start_target - start)
        of_start = start_mean(first) + 0.7 * gap if gap else 0.0
        wanted = known * (np.nanmean(whole) + of_start) + 0.7 * lacking
        assert loss == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        lacked[int(known)] += lacking
    assert min(lacked) > 0, "one of the two kinds lacks nothing: the test shows nothing of its level"


def test_a_teacher_less_certain_than_the_base_is_of_new_music_is_sharpened(backend: MusicgenBackend) -> None:
    torch.manual_seed(0)
    logits, mask = 2 * torch.randn(3, 2, 5, 16), torch.rand(3, 2, 5) < 0.7
    logits[2] *= 4  # is certain enough

    def entropy_of(values: torch.Tensor, n: int) -> float:
        tokens = [scipy.stats.entropy(p) for p in values.double().softmax(-1)[n][mask[n]].numpy()]
        return float(np.mean(tokens))

    before = [entropy_of(logits, n) for n in range(3)]
    most = min(before[:2]) - 0.05
    after = [entropy_of(sharpened(logits, mask, most), n) for n in range(3)]
    assert before[2] < most
    assert after[2] == pytest.approx(before[2], abs=1e-6)
    assert torch.equal(sharpened(torch.zeros(1, 2, 5, 16), mask[:1], 0.0), torch.zeros(1, 2, 5, 16))
    assert torch.equal(sharpened(logits / 16, mask, 0.0), logits / 8), "no factor is above 2"
    for n in range(2):  # halfway
        assert before[n] - after[n] == pytest.approx(0.5 * (before[n] - most), rel=0.2)
    # What the entropy falls by per unit of the factor, by differences.
    mean, slope = entropy_and_slope(logits.masked_fill(~mask[..., None], float("nan")), mask)
    assert mean.tolist() == pytest.approx(before, rel=1e-5)
    for n in range(3):
        assert slope[n] == pytest.approx(
            (entropy_of(logits * 0.999, n) - entropy_of(logits * 1.001, n)) / 0.002, rel=1e-3
        )


def test_a_mean_prediction_is_brought_nearer_to_another_of_its_clip(backend: MusicgenBackend) -> None:
    """Each time half of the way in log-probabilities, less what is lost to their sum; other clips are as they were."""
    clips = make_clips(2)
    batch, other = Batch.of(clips), mean_of(moved(backend), clips[0])
    logits, mask = backend.logits(batch).detach().double(), backend.token_mask(batch)
    logits = logits.masked_fill(~mask[..., None], float("nan"))
    means = mean_predictions(logits, mask).numpy()
    np.testing.assert_allclose(means, [mean_of(backend, clip) for clip in clips], atol=1e-6)
    left = [np.abs(np.log(means[0] / other)).max()]
    for _ in range(3):
        logits = shift_mean_toward(logits, mask, [torch.tensor(other), None])
        left.append(np.abs(np.log(mean_predictions(logits, mask)[0].numpy() / other)).max())
    assert all(MEAN_SHIFT <= after / before < 0.7 for before, after in pairwise(left))
    np.testing.assert_array_equal(mean_predictions(logits, mask)[1], means[1])


def test_the_entropy_to_keep_is_that_of_the_base_for_new_music_as_a_teacher_gets_it(backend: MusicgenBackend) -> None:
    backend, holdout, retain = moved(backend), make_clips(3, seed=5), make_clips(3, seed=1)
    method, _ = made(backend, make_clips(2), retain, 1e6, holdout=holdout, shift_seconds=SHIFT)
    generator, entropies = torch.Generator().manual_seed(0), []
    for place in range(32):
        clip = holdout[place * 3 // 32]
        begin = int(torch.randint(7, (1,), generator=generator)) + 1
        strange = Clip(clip.track, drawn_caption(clip.caption, retain, generator), clip.codes[:, begin:])
        logp, mask = logprobs_of(backend, strange), backend.token_mask(Batch.of([strange]))[0]
        entropies.append(-(logp.exp() * logp).sum(-1)[mask].mean().item())
    assert method._entropy == pytest.approx(np.mean(entropies), rel=1e-5)


def test_a_teacher_has_captions_of_other_tracks_that_are_most_like_its_own() -> None:
    instruments = ["organ", "oboe", "harp", "lute", "koto", "fife", "banjo"]
    captions = [
        f"{mood} {name}, {tempo} bpm" for name in instruments for mood in ("sad", "merry") for tempo in (90, 99)
    ]
    clips = [Clip(caption, caption, torch.zeros(1, 1)) for caption in captions]
    generator = torch.Generator().manual_seed(0)
    own = "90 bpm, Merry LUTE"  # of no track, in another order
    drawn = {SimilarCaptions(clips).draw(own, generator) for _ in range(400)}
    ranked = sorted(captions, key=lambda other: -alike(own, other))
    assert "merry lute, 90 bpm" in drawn
    assert len(drawn) == 16
    assert min(alike(own, each) for each in drawn) >= alike(own, ranked[16]) > alike(own, ranked[-1])
    assert SimilarCaptions(clips[:1]).draw(captions[0], generator) == captions[0], "there is no other"
    assert SimilarCaptions(clips[:2]).draw(captions[0], generator) == captions[1]


def test_a_clip_beyond_its_level_is_left_alone(backend: MusicgenBackend) -> None:
    clips = make_clips(2)
    easy = [Clip("easy", clip.caption, backend.logits(Batch.of([clip]))[0].argmax(-1)) for clip in clips]
    hard = make_clips(2, seed=9)
    for holdout, alone in ((easy, True), (hard, False)):
        method, session = made(backend, clips, make_clips(4, seed=1), 99.0, holdout=holdout)
        method._target_nll = {clip: level + (0.0 if alone else 1.0) for clip, level in method._target_nll.items()}
        losses = method.forget_loss(step_of(backend, session), Batch.of(clips))
        assert ((losses == 0) == alone).all()


def test_a_shift_leaves_half_of_the_shortest_clip(backend: MusicgenBackend) -> None:
    """The others of its batch are not cut to its length."""
    clips = [Clip("short", CAPTIONS[0], make_clips(1)[0].codes[:, :6]), make_clips(1, seed=3)[0]]
    method, session = made(backend, clips, make_clips(4, seed=1), 99.0, shift_seconds=0.8)
    lengths: list[list[int]] = []
    model = backend.clone()
    logits = model.logits
    model.logits = lambda batch, **_: lengths.append(batch.frames.tolist()) or logits(batch)  # type: ignore[assignment]
    for seed in range(20):
        method.forget_loss(step_of(model, session, seed), Batch.of(clips))
    shifted = {(6 - shift, 20 - shift) for shift in (1, 2, 3)}
    assert {tuple(one) for one in lengths} == {(6, 20), *shifted, (6, 12)}


def test_one_clip_pulls_no_harder_than_its_share_of_a_batch(backend: MusicgenBackend) -> None:
    clips = make_clips(3)
    level = between(backend, clips, 1)
    values = []
    for size in (1, 4):  # one clip is a whole batch, or a quarter of one
        method, session = made(backend, clips[:1], make_clips(4, seed=1), level, forget_batch_size=size)
        method._target_nll[clips[0]] += 1  # it lacks something
        values.append(method.forget_loss(step_of(backend, session), Batch.of(clips[:1])).item())
    assert values[0] > 0
    assert values[1] == pytest.approx(values[0] / 4, rel=1e-6)
    method, session = made(backend, clips, make_clips(4, seed=1), level, forget_batch_size=2)
    assert method._share == 1


def test_the_teacher_predicts_without_dropout(tmp_path: Path) -> None:
    model = MusicgenBackend.load(str(write_tiny_musicgen(tmp_path, dropout=0.5)), offline=True)
    clips = make_clips(2)
    method, session = made(model, clips, make_clips(4, seed=1), 99.0, shift_seconds=1e-9)
    seen = []
    logits = model.logits
    model.logits = lambda batch, **_: seen.append(model.module.training) or logits(batch)  # type: ignore[assignment]
    model.module.train()
    method.forget_loss(step_of(model, session), Batch.of(clips))
    assert sorted(seen) == [False, False, True, True]
    assert model.module.training


def test_teacher_gives_no_gradient_and_depends_on_the_seed_alone(backend: MusicgenBackend) -> None:
    clips = make_clips(3)
    method, session = made(backend, clips, make_clips(5, seed=1), 99.0)
    method.options = method.options.model_copy(update={"gamma": 0.0})
    model = moved(backend)
    values = [method.forget_loss(step_of(model, session, 7), Batch.of(clips)) for _ in range(2)]
    assert torch.equal(values[0], values[1])
    assert (values[0] > 0).all()
    assert values[0].shape == (3,)
    values[0].sum().backward()
    # With the teacher's logits given as constants, the gradient is the same: none passes through it.
    found = {name: weight.grad.clone() for name, weight in model.module.named_parameters() if weight.grad is not None}
    model.module.zero_grad()
    kept: list[torch.Tensor] = []
    logits = model.logits

    def once(batch: Batch, **_: bool) -> torch.Tensor:
        kept.append(logits(batch))
        return kept[-1] if torch.is_grad_enabled() else torch.tensor(kept[-1].tolist())

    model.logits = once  # type: ignore[assignment]
    method.forget_loss(step_of(model, session, 7), Batch.of(clips)).sum().backward()
    assert sorted(one.requires_grad for one in kept) == [False, False, True, True]
    for name, weight in model.module.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, found[name])


def test_first_frames_are_forgotten_at_the_weights_themselves_where_the_clip_is_beyond_its_level(
    backend: MusicgenBackend,
) -> None:
    clips = make_clips(2)
    method, session = made(backend, clips, make_clips(4, seed=1), 99.0, attack_share=1.0, attack_steps=1)
    method._target_nll = {clip: level - 1000 for clip, level in method._target_nll.items()}
    method._start_target = 99.0
    step = replace(step_of(moved(backend), session), forget=clips)
    attacked, plain = (
        method.forget_loss(replace(step, lr_share=share, generator=torch.Generator().manual_seed(0)), Batch.of(clips))
        for share in (1.0, 0.4)
    )
    assert (plain > 0).all()
    torch.testing.assert_close(attacked, plain)
