"""The default method: its forget loss, and which retain clips it holds in which way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen

from encore.api import Batch, Clip, MethodSpec, Session, Step
from encore.backends.musicgen import MusicgenBackend
from encore.methods.encore import Encore
from encore.runs.engine import Clips, Engine, FrozenReference


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> MusicgenBackend:
    return MusicgenBackend.load(str(write_tiny_musicgen(tmp_path_factory.mktemp("tiny"))), offline=True)


def make_clips(count: int, seed: int = 0) -> list[Clip]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Clip(f"t{seed}{i}", CAPTIONS[i % 3], torch.randint(CODES, (2, 20 + i), generator=generator))
        for i in range(count)
    ]


def made(
    backend: MusicgenBackend, retain: list[Clip], level: float | None, *, holdout: Sequence[Clip] = (), **options: float
) -> tuple[Encore, Session]:
    Encore.spec = MethodSpec("encore", "", "", needs=frozenset({"retain", "reference"}))
    method = Encore(Encore.Options(**options))
    generator = torch.Generator().manual_seed(0)
    session = Session(backend, [], retain, holdout, FrozenReference(backend), generator, 0, level, lambda _: None)
    method.prepare(session)
    return method, session


def step_of(backend: MusicgenBackend, session: Session) -> Step:
    return Step(backend, session.reference, torch.Generator().manual_seed(0), 0.0, session.level)


@torch.no_grad()
def logprobs_of(backend: MusicgenBackend, clip: Clip) -> torch.Tensor:
    """[K, T, V], float64."""
    return backend.logits(Batch.of([clip]))[0].double().log_softmax(-1)


def nll_of(backend: MusicgenBackend, clip: Clip) -> list[list[float]]:
    """The unmasked tokens' NLLs of each codebook."""
    values = -logprobs_of(backend, clip).gather(-1, clip.codes[..., None])[..., 0]
    return [row[keep].tolist() for row, keep in zip(values, backend.token_mask(Batch.of([clip]))[0], strict=True)]


def test_forget_loss_is_divergence_from_the_estranged_self_plus_what_each_codebook_lacks(
    backend: MusicgenBackend,
) -> None:
    holdout, clips = make_clips(3, seed=2), make_clips(2)
    method, session = made(backend, make_clips(4, seed=1), 3.0, holdout=holdout, gamma=0.7)
    losses = method.forget_loss(step_of(backend, session), Batch.of(clips)).tolist()
    # The same draws, then everything again in float64, a clip and a codebook at a time.
    generator = torch.Generator().manual_seed(0)
    shift = int(torch.randint(min(int(0.8 * backend.frame_rate), 10), (1,), generator=generator)) + 1
    captions = [clip.caption for clip in make_clips(4, seed=1)]
    others = [captions[int(torch.randint(4, (1,), generator=generator))] for _ in clips]
    unseen: list[list[float]] = [[], []]
    for clip in holdout:
        for k, values in enumerate(nll_of(backend, clip)):
            unseen[k] += values
    lacked = []
    for clip, other, loss in zip(clips, others, losses, strict=True):
        strange = Clip(clip.track, other, clip.codes[:, shift:])
        teacher, own = logprobs_of(backend, strange), logprobs_of(backend, clip)[:, shift:]
        mask = backend.token_mask(Batch.of([strange]))[0]
        divergence = (teacher.exp() * (teacher - own)).sum(-1)[mask].mean().item()
        lacking = []
        for k in range(2):
            tokens = own[k].gather(-1, strange.codes[k, :, None])[:, 0][mask[k]]
            lacking.append(max(0.0, np.mean(unseen[k]) + tokens.mean().item()))
        assert loss == pytest.approx(divergence + 0.7 * np.mean(lacking), rel=1e-4)
        lacked.append(sum(lacking))
    assert max(lacked) > 0


def test_a_clip_beyond_the_level_is_lifted_no_further(backend: MusicgenBackend) -> None:
    clips = make_clips(2)
    easy = [Clip("easy", clip.caption, backend.logits(Batch.of([clip]))[0].argmax(-1)) for clip in clips]
    values = []
    for gamma in (0.0, 5.0):
        method, session = made(backend, make_clips(4, seed=1), 3.0, holdout=easy, gamma=gamma)
        values.append(method.forget_loss(step_of(backend, session), Batch.of(clips)).tolist())
    assert values[0] == values[1]


def test_without_a_holdout_the_level_is_that_of_what_was_heard_and_not_learnt(backend: MusicgenBackend) -> None:
    clips = make_clips(5)
    nll = backend.losses(Batch.of(clips)).tolist()
    method, _ = made(backend, clips, 2 * sorted(nll)[1] + 1e-4)  # two of the five are known by heart
    heard = [clip for clip, value in zip(clips, nll, strict=True) if value > sorted(nll)[1]]
    assert len(heard) == 3
    expected = [np.mean([value for clip in heard for value in nll_of(backend, clip)[k]]) for k in range(2)]
    assert method._levels is not None
    assert method._levels.tolist() == pytest.approx(expected, rel=1e-5)


def test_mixed_crops_are_two_clips_under_a_caption_of_a_third(backend: MusicgenBackend) -> None:
    clips = make_clips(6)
    method, session = made(backend, clips, 1e-3, mix=1.0, crop=0.0)  # none is known by heart
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
    plain, _ = made(backend, clips, 1e-3, mix=0.0, crop=0.0)
    assert torch.equal(plain._crop(clips[5], generator).codes, clips[5].codes)
    assert session.retain == clips


def test_the_teacher_plays_without_dropout(tmp_path: Path) -> None:
    model = MusicgenBackend.load(str(write_tiny_musicgen(tmp_path, dropout=0.5)), offline=True)
    clips = make_clips(2)
    method, session = made(model, clips, 3.0, shift_seconds=1e-9)
    seen = []
    logits = model.logits
    model.logits = lambda batch, **_: seen.append(model.module.training) or logits(batch)  # type: ignore[assignment]
    model.module.train()
    method.forget_loss(step_of(model, session), Batch.of(clips))
    assert seen == [False, True]
    assert model.module.training


def test_retain_known_by_heart_keeps_its_likelihood_and_the_rest_the_base_distribution(
    backend: MusicgenBackend,
) -> None:
    clips = make_clips(4)
    nll = backend.losses(Batch.of(clips)).tolist()
    level = 2 * (sorted(nll)[1] + sorted(nll)[2]) / 2  # half of the clips lie below half of it
    method, session = made(backend, clips, level, alpha=3.0, crop=0.0, mix=0.0)
    known = {clip for clip, value in zip(clips, nll, strict=True) if value < level / 2}
    assert len(known) == 2
    step = Step(backend, session.reference, session.generator, 0.0, level)
    losses = method.retain_loss(step, Batch.of(clips)).tolist()
    for clip, value, own in zip(clips, losses, nll, strict=True):
        assert value == pytest.approx(3 * own if clip in known else 0.0, abs=1e-4)  # the model still is the base
    moved = backend.clone()
    with torch.no_grad():
        for weight in moved.module.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    again = method.retain_loss(Step(moved, session.reference, session.generator, 0.0, level), Batch.of(clips)).tolist()
    for clip, value in zip(clips, again, strict=True):
        batch = Batch.of([clip])
        if clip in known:
            expected = moved.losses(batch).item()
        else:
            base, own = (model.logits(batch)[0].double().log_softmax(-1) for model in (backend, moved))
            expected = (base.exp() * (base - own)).sum(-1)[moved.token_mask(batch)[0]].mean().item()
        assert value == pytest.approx(3 * expected, rel=1e-3)


def test_clips_known_by_heart_are_drawn_as_often_as_asked(backend: MusicgenBackend) -> None:
    clips = make_clips(12)
    nll = backend.losses(Batch.of(clips)).tolist()
    level = 2 * sorted(nll)[2] + 1e-4  # three of twelve are known
    _, session = made(backend, clips, level, known_share=0.6)
    counts = [session.retain.count(clip) for clip in clips]
    assert sorted(counts) == [1] * 9 + [4] * 3  # round(.6 / .4 * 9 / 3) = 4
    assert sum(sorted(counts)[-3:]) / sum(counts) == pytest.approx(0.6, abs=0.05)


def test_teacher_gives_no_gradient_and_depends_on_the_seed_alone(backend: MusicgenBackend) -> None:
    clips = make_clips(3)
    method, session = made(backend, make_clips(5, seed=1), 3.0)
    batch = Batch.of(clips)
    values = []
    for _ in range(2):
        step = Step(backend, session.reference, torch.Generator().manual_seed(7), 0.0, 3.0)
        values.append(method.forget_loss(step, batch))
    assert torch.equal(values[0], values[1])
    assert (values[0] > 0).all()
    assert values[0].shape == (3,)
    # A finite difference of the loss with the teacher held: the gradient is the model's alone.
    backend.module.zero_grad()
    values[0].sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in backend.module.parameters() if weight.grad is not None)
    backend.module.zero_grad()


def test_it_runs_without_a_holdout_and_on_very_short_clips(backend: MusicgenBackend, tmp_path: Path) -> None:
    Encore.spec = MethodSpec("encore", "", "", needs=frozenset({"retain", "reference"}))
    short = [Clip("short", CAPTIONS[0], torch.randint(CODES, (2, 4)))]
    options = Encore.Options(steps=3, batch_size=2, eval_every=1)
    outcome = Engine(backend.clone(), Clips(short, make_clips(3), [])).run(Encore(options))
    assert outcome.steps == 3
    assert outcome.reached_target is None
