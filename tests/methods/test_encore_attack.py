"""The default method: its loss under relearning attacks, and what these are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.methods.encore_answers import (
    between,
    made,
    make_clips,
    moved,
    nll_of,
    step_of,
)
from tests.tiny_model import write_tiny_musicgen

from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.errors import UsageError
from encore.methods.relearning_attack import RelearningAttack


def train(model: MusicgenBackend, clips: Sequence[Clip], steps: int, sign: int) -> None:
    """Learn clips, or with -1 drive their likelihood down."""
    model.module.eval()
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (sign * model.losses(Batch.of(clips)).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
        optimizer.step()
    model.module.zero_grad()


def nlls_of(model: MusicgenBackend, clips: Sequence[Clip]) -> float:
    return float(np.mean([nll_of(model, clip).mean() for clip in clips]))


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_under_attack_the_loss_is_that_of_relearned_weights(backend: MusicgenBackend, share: float) -> None:
    """One memorised clip is relearned, one that is not is not; as the rate decays nothing is.

    The levels there are those of new music after the same attack; a clip that is beyond its own is left alone.
    """
    holdout, retain, clips = make_clips(3, seed=5), make_clips(4, seed=1), make_clips(2)
    method, session = made(
        backend, clips, retain, between(backend, clips, 1), holdout=holdout, attack_share=1.0, attack_steps=1
    )
    known, other = sorted(clips, key=lambda clip: nll_of(backend, clip).mean())
    method._target_nll[other] -= 1  # beyond its level
    method._start_target = 0.0
    model = moved(backend)
    step = replace(step_of(model, session), lr_share=share, forget=clips)
    losses = method.forget_loss(step, Batch.of(clips))
    losses.sum().backward()

    attacked = model.clone()
    if share > 0.4:
        optimizer = torch.optim.AdamW(attacked.module.parameters(), lr=method._attack.lr)
        attacked.losses(Batch.of([known])).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    plain, _ = made(backend, clips, retain, session.holdout_nll, holdout=holdout)
    plain._target_nll[other] -= 1
    plain._start_target = 0.0
    if share > 0.4:
        plain._target_nll = {
            clip: level * method._attack.retained_shares[0] for clip, level in plain._target_nll.items()
        }
    generator = torch.Generator().manual_seed(0)
    wanted = plain.forget_loss(replace(step, backend=attacked, generator=generator), Batch.of(clips))
    if share > 0.4:
        nlls = [nll_of(attacked, clip).mean() for clip in clips]
        below = [nll < float(plain._target_nll[clip].mean()) for clip, nll in zip(clips, nlls, strict=True)]
        assert sorted(below) == [False, True]
        wanted = wanted * torch.tensor(below)
    wanted.sum().backward()
    assert losses.tolist() == pytest.approx(wanted.tolist(), rel=1e-4)
    for (name, weight), twin in zip(model.module.named_parameters(), attacked.module.parameters(), strict=True):
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, twin.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("known", "often"), [(1, 40), (2, 20), (0, 0)])
def test_fewer_memorised_clips_are_attacked_more_often(backend: MusicgenBackend, known: int, often: int) -> None:
    """At the same cost: a share of .25 is of batches of four clips, so one clip alone is attacked in every step."""
    clips = make_clips(2)
    level = {0: 0.1, 2: 100.0}.get(known) or between(backend, clips, known)
    method, session = made(
        backend, clips, make_clips(4, seed=1), level, attack_share=0.25, attack_steps=1, forget_batch_size=4
    )
    assert len(method._memorised_forget) == known
    generator = torch.Generator().manual_seed(0)
    step = replace(step_of(backend, session), lr_share=1.0, forget=clips, generator=generator)
    attacked = sum(bool(method._sample_step(step, Batch.of(clips))[2][0]) for _ in range(40))
    assert abs(attacked - often) <= (8 if known == 2 else 0)


def test_new_music_is_attacked_once_for_what_it_keeps(backend: MusicgenBackend) -> None:
    """As many of its clips at a time as of the memorised ones, here one, four in all."""
    holdout, clips = make_clips(5, seed=5), make_clips(2)
    method, _ = made(
        backend, clips, make_clips(4, seed=1), between(backend, clips, 1), holdout=holdout, attack_share=1.0,
        attack_steps=3, forget_batch_size=4,
    )  # fmt: skip
    wanted = []
    for clip in holdout[:4]:
        twin = backend.clone()
        twin.module.eval()
        optimizer = torch.optim.AdamW(twin.module.parameters(), lr=method._attack.lr)
        wanted.append([])
        for _ in range(3):
            optimizer.zero_grad()
            twin.losses(Batch.of([clip])).mean().backward()
            torch.nn.utils.clip_grad_norm_(twin.module.parameters(), 1.0)
            optimizer.step()
            wanted[-1].append(nll_of(twin, clip) / nll_of(backend, clip))
    np.testing.assert_allclose(method._attack.retained_shares.numpy(), np.mean(wanted, 0), rtol=1e-4)
    assert method._attack.retained_shares.max() < 1


@pytest.mark.parametrize("breaks", [False, True])
def test_attacks_take_the_rate_that_relearns_new_music_further(
    backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    """Of the one relative to the weights and a high fixed one; a fixed one that breaks the model is not taken."""
    monkeypatch.setattr("encore.methods.relearning_attack.STRONG_ATTACK_LR", 3.0 if breaks else 2e-3)
    clips, retain, new = make_clips(2), make_clips(4, seed=1), make_clips(3, seed=5)
    level = between(backend, clips, 1)
    method, session = made(backend, clips, retain, level, holdout=new, attack_share=1.0, attack_rate=1e-3)
    assert method._attack.lr == (1e-3 * method._weight_rms if breaks else 2e-3)
    assert ("attack_rate" in session.chosen) is not breaks
    assert torch.equal(
        method._attack.retained_shares, method._attack._measured_shares(backend, [new[:1], new[1:2], new[2:]])
    )


@pytest.mark.parametrize("learnt", [True, False])
def test_resisted_is_what_relearns_no_faster_than_new_music(tmp_path: Path, learnt: bool) -> None:
    """A model trained on its forget clips, of which a little covers the outcome, against one that never saw them."""
    model = MusicgenBackend.load(str(write_tiny_musicgen(tmp_path)), offline=True)
    clips, holdout = make_clips(3), make_clips(3, seed=5)
    train(model, clips, 60, 1)
    method, session = made(
        model, clips, make_clips(4, seed=1), nlls_of(model, holdout), holdout=holdout, attack_share=1.0, attack_rate=0.1
    )
    assert len(method._memorised_forget) == 3
    other = MusicgenBackend.load(str(write_tiny_musicgen(tmp_path / "other")), offline=True)
    train(other, holdout, 60, 1)
    if learnt:
        other = model.clone()
        train(other, clips, 12, -1)
    before = nlls_of(other, clips)
    assert before > 0.9 * session.holdout_nll, "forgotten, as it seems"
    assert method._attack.resisted(step_of(other, session), method._target_nll, 4) is not learnt
    assert nlls_of(other, clips) == before


def test_an_attack_that_breaks_held_out_music_is_refused_by_the_name_of_its_rate(
    backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of the copy overflow at the first step."""
    real = RelearningAttack.__call__

    def broken(self: RelearningAttack, *given: object, **more: object) -> Iterator[dict[str, torch.Tensor]]:
        for weights in real(self, *given, **more):  # type: ignore[arg-type]
            with torch.no_grad():
                next(iter(weights.values())).mul_(math.inf)
            yield weights

    monkeypatch.setattr(RelearningAttack, "__call__", broken)
    with pytest.raises(UsageError, match="not finite") as caught:
        made(backend, make_clips(3), make_clips(2, seed=1), 1e6, holdout=make_clips(3, seed=5), attack_share=1.0)
    assert "attack_rate" in (caught.value.hint or "")
