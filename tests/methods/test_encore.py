"""The default method: its teacher's arithmetic, and which retain clips it holds in which way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen

from encore.api import Batch, Clip, MethodSpec, Session, Step
from encore.backends.musicgen import MusicgenBackend
from encore.losses import clip_mean
from encore.methods.encore import Encore, lower_true
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


def made(backend: MusicgenBackend, retain: list[Clip], level: float | None, **options: float) -> tuple[Encore, Session]:
    Encore.spec = MethodSpec("encore", "", "", needs=frozenset({"retain", "reference"}))
    method = Encore(Encore.Options(**options))
    generator = torch.Generator().manual_seed(0)
    session = Session(backend, [], retain, [], FrozenReference(backend), generator, 0, level, lambda _: None)
    method.prepare(session)
    return method, session


def test_lowering_the_true_code_reaches_the_level_and_leaves_the_rest_in_proportion() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 7, 11, generator=generator) * 3
    codes = logits.argmax(-1)  # a memorised clip: the true code is the likeliest
    codes[2] = logits[2].argmin(-1)  # one that is far beyond the level already
    mask = torch.ones(3, 2, 7, dtype=torch.bool)
    mask[1, :, 5:] = False
    before = logits.log_softmax(-1)
    after = lower_true(before, codes, mask, 2.5)
    torch.testing.assert_close(after.exp().sum(-1), torch.ones(3, 2, 7))
    nll = clip_mean(-after.gather(-1, codes[..., None])[..., 0], mask)
    torch.testing.assert_close(nll[:2], torch.full((2,), 2.5), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(after[2], before[2])
    # The other codes keep their odds.
    others = torch.ones_like(before, dtype=torch.bool).scatter(-1, codes[..., None], False)
    a = (after[0] - before[0])[others[0]].view(2, 7, 10)
    torch.testing.assert_close(a.std(-1), torch.zeros(2, 7), rtol=0, atol=1e-5)


def test_the_drop_is_the_root_of_the_formula() -> None:
    logprobs = torch.tensor([[-0.1, -0.3, -1.2]]).view(1, 1, 3)
    table = torch.stack([logprobs, torch.log1p(-logprobs.exp())], -1)  # two codes, the first is true
    after = lower_true(table, torch.zeros(1, 1, 3, dtype=torch.long), torch.ones(1, 1, 3, dtype=torch.bool), 3.0)
    p = np.exp([-0.1, -0.3, -1.2])
    root = brentq(lambda d: np.mean(-np.log(p * np.exp(-d) / (1 - p + p * np.exp(-d)))) - 3.0, 0, 12)
    expected = np.log(p * np.exp(-root) / (1 - p + p * np.exp(-root)))
    assert after[0, 0, :, 0].tolist() == pytest.approx(expected, abs=1e-3)


def test_retain_known_by_heart_keeps_its_likelihood_and_the_rest_the_base_distribution(
    backend: MusicgenBackend,
) -> None:
    clips = make_clips(4)
    nll = backend.losses(Batch.of(clips)).tolist()
    level = 2 * (sorted(nll)[1] + sorted(nll)[2]) / 2  # half of the clips lie below half of it
    method, session = made(backend, clips, level, alpha=3.0, crop=0.0)
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
