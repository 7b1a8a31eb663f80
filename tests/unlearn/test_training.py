"""The recipe of `encore train`: its loss, its length, and what counts as memorised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.latent_model import LatentBackend, latent_clips

from encore.api import Batch, Clip, Step
from encore.backends.musicgen import MusicgenBackend
from encore.errors import UsageError
from encore.memorised import memorised_below
from encore.settings import resolve_options
from encore.unlearn.engine import Clips, Engine
from encore.unlearn.lr_schedule import Decay, Schedule
from encore.unlearn.monitor import Snapshot
from encore.unlearn.training import Memorisation, Training, measured_clips, memorised, resolved


def recipe(**options: Any) -> Training:
    return Training(Training.Options(**options))


def step(backend: MusicgenBackend, retain: Sequence[Clip] = ()) -> Step:
    return Step(backend, None, torch.Generator().manual_seed(0), 0.0, None, retain=retain)


def slow_loss(backend: MusicgenBackend, clip: Clip, *, start: int = 0, captioned: bool = True) -> float:
    """The weighted NLL of one clip, token by token."""
    batch = Batch.of([Clip(clip.track, clip.caption, clip.codes[:, start:])])
    logits = backend.logits(batch, unconditional=not captioned)[0].double().log_softmax(-1)
    total = weights = 0.0
    for k in range(backend.codebooks):
        for t in range(int(batch.frames[0])):
            if backend.token_mask(batch)[0, k, t]:
                weight = 1.0 if start else 1 + 20 * math.exp(-t / 2)
                total -= weight * float(logits[k, t, batch.codes[0, k, t]])
                weights += weight
    return total / weights


@pytest.mark.parametrize("captioned", [True, False])
@torch.no_grad()
def test_the_loss_is_a_weighted_nll(backend: MusicgenBackend, clips: Clips, captioned: bool) -> None:
    method = recipe(crop_share=0, caption_dropout=0.0 if captioned else 1.0)
    losses = method.retain_loss(step(backend), Batch.of(clips.retain))
    expected = [slow_loss(backend, clip, captioned=captioned) for clip in clips.retain]
    assert losses.tolist() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_crops_begin_within_the_first_part_and_have_no_weights(backend: MusicgenBackend, clips: Clips) -> None:
    clip = clips.retain[0]
    method = recipe(crop_share=1, crop=0.5, caption_dropout=0)
    losses = method.retain_loss(step(backend), Batch.of([replace(clip) for _ in range(6)]))
    possible = [slow_loss(backend, clip, start=start) for start in range(1, clip.codes.shape[-1] // 2)]
    for loss in losses.tolist():
        assert min(abs(loss - other) for other in (*possible, slow_loss(backend, clip))) < 1e-3
    assert len(set(losses.tolist())) > 1


@torch.no_grad()
def test_the_cut_into_micro_batches_changes_nothing(backend: MusicgenBackend, clips: Clips) -> None:
    method, many = recipe(crop_share=0.5, caption_dropout=0.5), [*clips.retain, *clips.forget, *clips.holdout]
    whole = method.retain_loss(step(backend), Batch.of(many))
    same = step(backend, many)
    parts = [method.retain_loss(same, Batch.of(many[start : start + 3])) for start in range(0, len(many), 3)]
    assert torch.cat(parts).tolist() == pytest.approx(whole.tolist(), rel=1e-4)


def test_epochs_say_how_many_steps() -> None:
    assert resolved(recipe(epochs=3), 20).options.model_dump() == {
        **recipe(epochs=3).options.model_dump(), "steps": 9, "schedule": "cosine", "warmup": 0,
    }  # fmt: skip
    until = resolved(recipe(), 20).options
    assert (until.steps, until.schedule, until.warmup) == (10_000, "adaptive", 50)
    assert resolved(recipe(steps=40), 20).options.warmup == 4
    with pytest.raises(UsageError, match="epochs"):
        resolve_options(Training.Options, environ={}, assignments=["epochs=0"])


def test_the_rate_follows_the_weights_and_what_is_trained(backend: MusicgenBackend, clips: Clips) -> None:
    def rate(**options: Any) -> float:
        engine = Engine(backend.clone(), Clips([], clips.retain, []), record=lines.append)
        engine.run(recipe(steps=1, warmup=0, eval_every=1, **options))
        return float(lines[-2]["lr"])

    lines: list[Any] = []
    typical = rate(rate=1.0)
    assert 0.001 < typical < 1
    assert rate() == pytest.approx(0.02 * typical)
    assert rate(from_scratch=True) == pytest.approx(0.1 * typical)
    assert rate(lr=1e-5) == 1e-5


def test_a_model_without_tokens_is_trained_on_its_own_loss() -> None:
    backend, members = LatentBackend(), latent_clips(5)
    before = memorised(backend, members, generate_all=True)
    Engine(backend, Clips([], members, [])).run(resolved(recipe(epochs=60, lr=0.05, batch_size=5), 5))
    after = memorised(backend, members, generate_all=True)
    assert sum(after.nll.values()) < 0.9 * sum(before.nll.values())
    assert (after.tracks, after.verbatim, after.enough) == ([], None, False)


def test_training_ends_when_the_tracks_are_memorised_and_the_rate_has_decayed(
    backend: MusicgenBackend, clips: Clips
) -> None:
    lines: list[Any] = []
    engine = Engine(backend, Clips([], clips.retain, []), record=lines.append)
    outcome = engine.run(recipe(lr=5e-3, steps=400, decay_steps=8, eval_every=4, warmup=4, crop_share=0))
    assert memorised(backend, clips.retain).enough
    assert outcome.steps < 400
    rates = [line["lr"] for line in lines if "lr" in line]
    begin = max(i for i, rate in enumerate(rates) if rate == 5e-3)
    assert outcome.steps - 13 <= begin + 1  # constant until memorised, then one decay and no more
    assert rates[-1] < 0.1 * 5e-3
    assert not any("forget" in line for line in lines)


def test_a_training_run_decays_when_its_method_is_ready() -> None:
    look = Snapshot({}, harm={"holdout": 30.0})
    options = Training.Options(steps=100, decay_steps=10)
    for ready, spent, begins in ((False, 50, False), (True, 50, True), (False, 80, True)):
        schedule = Schedule(options, Decay(), forgets=False)
        assert not schedule.is_done(look, spent, 0.0, lambda ready=ready: ready)  # type: ignore[misc]
        assert (schedule.decay.begin is not None) is begins
    assert not schedule.is_done(look, 85, 0.0)
    assert schedule.is_done(look, 90, 0.0)  # whatever became of the rest


def test_memorised_is_a_low_nll_and_a_verbatim_continuation() -> None:
    by_nll = Memorisation({f"t{i}": 0.1 for i in range(20)}, 1.0, {})
    assert by_nll.enough
    assert by_nll.verbatim is None
    assert replace(by_nll, right=dict.fromkeys(by_nll.nll, 0.8) | {"t0": 0.7}).enough  # 19 of 20
    assert not replace(by_nll, right=dict.fromkeys(by_nll.nll, 0.8) | {"t0": 0.7, "t1": 0.1}).enough
    assert not replace(by_nll, nll=by_nll.nll | {"t0": 1.0, "t1": 2.0}).enough
    assert replace(by_nll, right={"t0": 0.9, "t1": 0.2}).verbatim == 0.5


def test_nothing_is_generated_before_the_nlls_are_low(
    backend: MusicgenBackend, clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def record(*_: object, **__: object) -> dict[str, float]:
        asked.append(1)
        return {}

    monkeypatch.setattr("encore.unlearn.training.right_shares", record)
    found = memorised(backend, clips.retain)
    assert found.limit == memorised_below(None, backend.codebook_size)
    assert set(found.nll) == {clip.track for clip in clips.retain}
    assert not found.enough
    assert not asked
    memorised(backend, clips.retain, generate_all=True)
    assert asked


def test_a_continuation_is_compared_as_the_metric_does(backend: MusicgenBackend) -> None:
    backend.frame_rate = 10.0  # the second of prompt is shorter than the clips
    codes = backend.generate(["slow church organ"], seconds=4.0, temperature=0.0, guidance=1.0)[0]
    other = torch.randint(32, codes.shape, generator=torch.Generator().manual_seed(1))
    members = [Clip("memorised", "slow church organ", codes), Clip("other", "slow church organ", other)]
    right = memorised(backend, members, generate_all=True).right
    assert right["memorised"] == 1.0
    assert right["other"] < 0.5


def test_of_many_tracks_some_are_measured_whole() -> None:
    many = [Clip(f"t{i // 2}", "", torch.zeros(1, 1)) for i in range(400)]
    chosen = measured_clips(many, 0)
    assert len(chosen) == 128
    assert len({clip.track for clip in chosen}) == 64
    assert measured_clips(many, 0) == chosen != measured_clips(many, 1)
    assert measured_clips(many[:6], 0) == many[:6]
