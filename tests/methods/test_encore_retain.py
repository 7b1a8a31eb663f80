"""The default method: its loss on retain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.methods.encore_answers import (
    between,
    costs_of,
    logprobs_of,
    made,
    make_clips,
    moved,
    nll_of,
    step_of,
)
from tests.tiny_model import CAPTIONS

from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend


def test_memorised_retain_keeps_its_likelihood_and_the_rest_the_base_distribution(backend: MusicgenBackend) -> None:
    """Of the memorised clips, the first frames count the more the surer the base was of them."""
    clips = make_clips(4)
    level = between(backend, clips, 2)
    method, session = made(
        backend, make_clips(2, seed=5), clips, level, alpha=3.0, crop=0.0, mix=0.0, unconditional=0.0
    )
    memorised = {clip for clip in clips if nll_of(backend, clip).mean() < level / 2}
    assert len(memorised) == 2
    model = moved(backend)
    losses = method.retain_loss(step_of(model, session), Batch.of(clips)).tolist()
    unmoved = method.retain_loss(step_of(backend, session), Batch.of(clips)).tolist()
    weighed = 0.0
    for clip, value, before in zip(clips, losses, unmoved, strict=True):
        mask = model.token_mask(Batch.of([clip]))[0]
        if clip in memorised:
            costs = costs_of(backend, clip)  # weights are of the base, however far the model has gone
            sure = np.clip(1 - np.nanmean(costs, 0) / level, 0, 1)  # [T]
            frames = 1 + 20 * sure * np.exp(-np.arange(len(sure)) / 2)
            weights = np.where(mask, frames, np.nan)
            expected, base = (np.nansum(costs_of(one, clip) * weights) / np.nansum(weights) for one in (model, backend))
            weighed += abs(expected - np.nanmean(costs_of(model, clip)))
            assert before == pytest.approx(3 * base, rel=1e-4)
        else:
            base, own = (logprobs_of(one, clip) for one in (backend, model))
            expected = (base.exp() * (base - own)).sum(-1)[mask].mean().item()
            assert before == pytest.approx(0, abs=1e-5)  # the model still is the base
        assert value == pytest.approx(3 * expected, rel=1e-3)
    assert weighed > 0.01, "the weights change nothing: the test shows nothing"


def test_a_share_of_the_steps_keeps_the_base_distribution_without_captions(backend: MusicgenBackend) -> None:
    """In such a step of all retain clips, the memorised ones too, in any cut into micro-batches."""
    clips = make_clips(4)
    level = between(backend, clips, 2)
    made_of = make_clips(2, seed=5)
    method, session = made(backend, made_of, clips, level, alpha=3.0, crop=0.0, mix=0.0, unconditional=0.5)
    model, seen = moved(backend), set()
    for seed in range(8):
        step = replace(step_of(model, session, seed), retain=clips)
        losses = [method.retain_loss(step, Batch.of([clip])).item() for clip in clips]
        free = bool(torch.rand((), generator=torch.Generator().manual_seed(seed)) < 0.5)
        seen.add(free)
        for clip, value in zip(clips, losses, strict=True):
            batch, mask = Batch.of([clip]), model.token_mask(Batch.of([clip]))[0]
            with torch.no_grad():
                base, own = (one.logits(batch, unconditional=True)[0].log_softmax(-1) for one in (backend, model))
            expected = (base.exp() * (base - own)).sum(-1)[mask].mean().item()
            assert (value == pytest.approx(3 * expected, rel=1e-3)) == free
    assert seen == {True, False}


def test_mixed_crops_are_two_clips_under_a_caption_of_a_third(backend: MusicgenBackend) -> None:
    clips = make_clips(6)
    method, session = made(backend, make_clips(2, seed=5), clips, 1e-3, mix=1.0, crop=0.0)  # none is memorised
    generator = torch.Generator().manual_seed(1)
    mixed = [method._crop(clips[5], generator) for _ in range(40)]
    for one in mixed:
        same = (one.codes[:, :1] == clips[5].codes[:, :1]).all()
        assert same, "it begins as the clip does"
        assert any(
            torch.equal(one.codes, torch.cat([clips[5].codes[:, :cut], other.codes[:, cut:]], 1))
            for other in clips
            for cut in range(1, 26)
        )
    assert len({one.caption for one in mixed}) > 1
    plain, _ = made(backend, make_clips(2, seed=5), clips, 1e-3, mix=0.0, crop=0.0)
    assert torch.equal(plain._crop(clips[5], generator).codes, clips[5].codes)
    assert session.retain == clips


def test_a_crop_is_mixed_with_clips_of_any_length(backend: MusicgenBackend) -> None:
    long = make_clips(1)[0]
    short = Clip("short", CAPTIONS[0], long.codes[:, :3])
    method, _ = made(backend, make_clips(2, seed=5), [long, short], 1e-3, mix=1.0, crop=0.9)
    generator = torch.Generator().manual_seed(1)
    lengths = {method._crop(clip, generator).codes.shape[-1] for _ in range(100) for clip in (long, short)}
    assert min(lengths) >= 1
    assert max(lengths) <= 20


@pytest.mark.parametrize(("memorised", "share", "each", "crops"), [(3, 0.6, 6, 1), (9, 0.3, 1, 2)])
def test_memorised_clips_are_drawn_as_often_as_asked(
    backend: MusicgenBackend, memorised: int, share: float, each: int, crops: int
) -> None:
    """Whole for their likelihood, `each` times; and every clip as a crop, `crops` times."""
    clips = make_clips(12)
    level = between(backend, clips, memorised)
    method, session = made(backend, make_clips(2, seed=5), clips, level, memorised_share=share)
    known = {clip for clip in clips if nll_of(backend, clip).mean() < level / 2}
    assert len(known) == memorised == len(method._memorised_retain)
    assert {clip: session.retain.count(clip) for clip in known} == dict.fromkeys(known, each)
    rest = [clip for clip in session.retain if clip not in known]
    assert sorted(clip.track for clip in rest) == sorted(clip.track for clip in clips * crops)
    assert memorised * each / len(session.retain) == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(
    ("harm", "gives_way"),
    [
        ({}, False),
        ({"memorised": 0.2, "worst": 0.4, "not_memorised": 0.9}, False),
        ({"memorised": 0.2, "worst": 0.4, "not_memorised": 1.1}, True),
        ({"memorised": 2.0, "worst": 0.4, "not_memorised": 1.9}, False),
        ({"memorised": 2.0, "worst": 2.5, "not_memorised": 2.4}, False),
        ({"memorised": 2.0, "worst": 2.5, "not_memorised": 3.0}, True),
        ({"not_memorised": 1.1}, True),
    ],
)
def test_memorised_clips_give_way_to_others_that_are_harmed_more(backend: MusicgenBackend, harm, gives_way) -> None:
    """Half of them, in every cut into micro-batches; what replaces them keeps the base's distribution."""
    clips = make_clips(4)
    level = between(backend, clips, 2)
    method, session = made(backend, make_clips(2, seed=5), clips, level, alpha=3.0, mix=0.0, unconditional=0.0)
    memorised = [clip for clip in clips if nll_of(backend, clip).mean() < level / 2]
    model, replaced = moved(backend), 0
    for seed in range(60):
        step = replace(step_of(model, session, seed), retain=clips, harm=harm)
        losses = torch.cat([method.retain_loss(step, Batch.of([clip])) for clip in clips[: 4 if seed < 3 else 1]])
        crops = step.drawn["crops"][1]
        replaced += sum(crops[clip] is not clip for clip in memorised)
        for clip, value in zip(clips, losses.tolist(), strict=False):
            if crops[clip] is not clip:
                base, own = (logprobs_of(one, crops[clip]) for one in (backend, model))
                mask = model.token_mask(Batch.of([crops[clip]]))[0]
                expected = (base.exp() * (base - own)).sum(-1)[mask].mean().item()
                assert value == pytest.approx(3 * expected, rel=1e-3)
    assert replaced / 120 == pytest.approx(0.5 if gives_way else 0, abs=0.13)
