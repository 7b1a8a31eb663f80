"""The default method: its levels, its rate and its losses against slow float64 answers, a clip at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from tests.metrics.markov import MarkovBackend, track
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen
from torch import nn

from encore.api import Batch, Clip, MethodSpec, Session, Step
from encore.backends.musicgen import MusicgenBackend
from encore.methods.difficulty import difficulty
from encore.methods.encore import Encore, entropy_and_slope, sharpened, typical_weight
from encore.unlearn.engine import Clips, Engine
from encore.unlearn.reference import FrozenReference
from encore.unlearn.self_retain import generate_retain

SPEC = MethodSpec("encore", "", "", needs=frozenset({"retain", "reference"}))
SHIFT = 0.07  # seconds; 7 frames


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> MusicgenBackend:
    return MusicgenBackend.load(str(write_tiny_musicgen(tmp_path_factory.mktemp("tiny"))), offline=True)


def make_clips(count: int, seed: int = 0) -> list[Clip]:
    """Random codes, each clip a frame longer than the one before."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Clip(f"t{seed}{i}", CAPTIONS[i % 3], torch.randint(CODES, (2, 20 + i), generator=generator))
        for i in range(count)
    ]


def made(
    backend: MusicgenBackend,
    forget: Sequence[Clip],
    retain: Sequence[Clip],
    level: float | None,
    *,
    holdout: Sequence[Clip] = (),
    **options: float,
) -> tuple[Encore, Session]:
    Encore.spec = SPEC
    method = Encore(Encore.Options(**{"attack_share": 0.0} | options))
    generator = torch.Generator().manual_seed(0)
    reference = FrozenReference(backend)
    session = Session(backend, forget, retain, holdout, reference, generator, 0, level, lambda _: None)
    method.prepare(session)
    return method, session


def step_of(backend: MusicgenBackend, session: Session, seed: int = 0) -> Step:
    return Step(backend, session.reference, torch.Generator().manual_seed(seed), 0.0, session.holdout_nll)


def moved(backend: MusicgenBackend) -> MusicgenBackend:
    """A clone that is not the base any more."""
    torch.manual_seed(3)
    other = backend.clone()
    with torch.no_grad():
        for weight in other.module.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return other


@torch.no_grad()
def logprobs_of(backend: MusicgenBackend, clip: Clip) -> torch.Tensor:
    """[K, T, V], float64."""
    return backend.logits(Batch.of([clip]))[0].double().log_softmax(-1)


def costs_of(backend: MusicgenBackend, clip: Clip) -> np.ndarray:
    """NLL of every token, [K, T]; NaN where masked."""
    values = -logprobs_of(backend, clip).gather(-1, clip.codes[..., None])[..., 0]
    return np.where(backend.token_mask(Batch.of([clip]))[0], values, np.nan)


def nll_of(backend: MusicgenBackend, clip: Clip) -> np.ndarray:
    """Mean NLL of each codebook, [K]."""
    return np.nanmean(costs_of(backend, clip), 1)


def between(backend: MusicgenBackend, clips: Sequence[Clip], count: int) -> float:
    """The held-out level below half of which `count` of the clips lie: so many are memorised."""
    own = sorted(float(nll_of(backend, clip).mean()) for clip in clips)
    return own[count - 1] + own[count]


def start_of(clip: Clip) -> Clip:
    """A clip's first frames."""
    return Clip(clip.track, clip.caption, clip.codes[:, :12])


def start_mean(values: np.ndarray) -> float:
    """The mean of values [K, T] that are not NaN: frame t weighs exp(-t / 2)."""
    weights = np.exp(-np.arange(values.shape[1]) / 2) * ~np.isnan(values)
    return float(np.nansum(values * weights) / weights.sum())


def divergences_of(model: MusicgenBackend, strange: Clip, own: torch.Tensor, sharp: bool) -> np.ndarray:
    """KL of the predictions for a clip and others [K, T, V] of every token, [K, T]; NaN where masked."""
    teacher, mask = logprobs_of(model, strange), model.token_mask(Batch.of([strange]))[0]
    if sharp:
        teacher = sharpened(teacher[None], mask[None], 0.0)[0].log_softmax(-1)
    return np.where(mask, (teacher.exp() * (teacher - own)).sum(-1), np.nan)


def rise_of(backend: MusicgenBackend, clip: Clip, shift: int) -> float:
    """What the later part of a clip costs more where the clip begins there, nats per token."""
    begin = min(shift, clip.codes.shape[-1] // 2)
    later = Clip(clip.track, clip.caption, clip.codes[:, begin:])
    return float(np.nanmean(costs_of(backend, later) - costs_of(backend, clip)[:, begin:]))


def levels_of(
    backend: MusicgenBackend, forget: Sequence[Clip], new: Sequence[Clip], limit: float, shift: int
) -> list[np.ndarray]:
    unknown = np.mean([nll_of(backend, clip) for clip in new], 0)
    shares = difficulty(forget, new, torch.tensor([nll_of(backend, clip).mean() for clip in new])).tolist()
    usual = np.mean([rise_of(backend, clip, shift) for clip in new])
    return [
        unknown * share
        if (own := nll_of(backend, clip)).mean() < limit
        else own + max(0, rise_of(backend, clip, shift) - usual)
        for clip, share in zip(forget, shares, strict=True)
    ]


# ------------------------------------------------------------------------------------------------------ forget loss


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
    assert method._start_level == pytest.approx(np.mean(of_new) - np.std(of_new), rel=1e-4)
    starts = [start_mean(costs_of(model, start_of(clip))) for clip in clips]
    method._start_level = float(np.mean([start for start, known in zip(starts, taught, strict=True) if known]))
    method._entropy = 0.0 if sharp else math.inf
    losses = method.forget_loss(step_of(model, session, seed), Batch.of(clips)).tolist()
    # The same draws, then everything again in float64, a clip and a codebook at a time.
    generator = torch.Generator().manual_seed(seed)
    shift = int(torch.randint(7, (1,), generator=generator)) + 1
    new = [clip for clip in retain if nll_of(backend, clip).mean() >= level / 2]
    assert 0 < len(new) < 4
    captions, start_captions = (
        [some[int(torch.randint(len(some), (1,), generator=generator))].caption for _ in clips]
        for some in (retain, new)
    )
    levels = levels_of(backend, clips, holdout, level / 2, 7)
    lacked = [0.0, 0.0]
    for clip, caption, start_caption, known, start, target, loss in zip(
        clips, captions, start_captions, taught, starts, levels, losses, strict=True
    ):
        own = logprobs_of(model, clip)
        whole = divergences_of(model, Clip(clip.track, caption, clip.codes[:, shift:]), own[:, shift:], sharp)
        first = divergences_of(model, Clip(clip.track, start_caption, clip.codes[:, :12]), own[:, :12], sharp)
        lacking = np.maximum(0, target - nll_of(model, clip)).mean()
        gap = max(0, method._start_level - start)
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


def test_the_entropy_to_keep_is_that_of_the_base_for_new_music_as_a_teacher_gets_it(backend: MusicgenBackend) -> None:
    holdout, retain = make_clips(3, seed=5), make_clips(2, seed=1)
    method, _ = made(backend, make_clips(2), retain, 1e6, holdout=holdout, shift_seconds=SHIFT)
    generator, entropies = torch.Generator().manual_seed(0), []
    for place in range(32):
        clip = holdout[place * 3 // 32]
        begin = int(torch.randint(7, (1,), generator=generator)) + 1
        other = retain[int(torch.randint(2, (1,), generator=generator))]
        strange = Clip(clip.track, other.caption, clip.codes[:, begin:])
        logp, mask = logprobs_of(backend, strange), backend.token_mask(Batch.of([strange]))[0]
        entropies.append(-(logp.exp() * logp).sum(-1)[mask].mean().item())
    assert method._entropy == pytest.approx(np.mean(entropies), rel=1e-5)


def test_a_clip_beyond_its_level_is_left_alone(backend: MusicgenBackend) -> None:
    clips = make_clips(2)
    easy = [Clip("easy", clip.caption, backend.logits(Batch.of([clip]))[0].argmax(-1)) for clip in clips]
    hard = make_clips(2, seed=9)
    for holdout, alone in ((easy, True), (hard, False)):
        method, session = made(backend, clips, make_clips(4, seed=1), 99.0, holdout=holdout)
        method._levels = {clip: level + (0.0 if alone else 1.0) for clip, level in method._levels.items()}
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
        method._levels[clips[0]] += 1  # it lacks something
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
    method._levels[other] -= 1  # beyond its level
    method._start_level = 0.0
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
    plain._levels[other] -= 1
    plain._start_level = 0.0
    if share > 0.4:
        plain._levels = {clip: level * method._attack.kept_shares[0] for clip, level in plain._levels.items()}
    generator = torch.Generator().manual_seed(0)
    wanted = plain.forget_loss(replace(step, backend=attacked, generator=generator), Batch.of(clips))
    if share > 0.4:
        nlls = [nll_of(attacked, clip).mean() for clip in clips]
        below = [nll < float(plain._levels[clip].mean()) for clip, nll in zip(clips, nlls, strict=True)]
        assert sorted(below) == [False, True]
        wanted = wanted * torch.tensor(below)
    wanted.sum().backward()
    assert losses.tolist() == pytest.approx(wanted.tolist(), rel=1e-4)
    for (name, weight), twin in zip(model.module.named_parameters(), attacked.module.parameters(), strict=True):
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, twin.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_first_frames_are_forgotten_at_the_weights_themselves_where_the_clip_is_beyond_its_level(
    backend: MusicgenBackend,
) -> None:
    clips = make_clips(2)
    method, session = made(backend, clips, make_clips(4, seed=1), 99.0, attack_share=1.0, attack_steps=1)
    method._levels = {clip: level - 1000 for clip, level in method._levels.items()}
    method._start_level = 99.0
    step = replace(step_of(moved(backend), session), forget=clips)
    attacked, plain = (
        method.forget_loss(replace(step, lr_share=share, generator=torch.Generator().manual_seed(0)), Batch.of(clips))
        for share in (1.0, 0.4)
    )
    assert (plain > 0).all()
    torch.testing.assert_close(attacked, plain)


@pytest.mark.parametrize(("known", "often"), [(1, 40), (2, 20), (0, 0)])
def test_fewer_memorised_clips_are_attacked_more_often(backend: MusicgenBackend, known: int, often: int) -> None:
    """At the same cost: a share of .25 is of batches of four clips, so one clip alone is attacked in every step."""
    clips = make_clips(2)
    level = {0: 0.1, 2: 100.0}.get(known) or between(backend, clips, known)
    method, session = made(
        backend, clips, make_clips(4, seed=1), level, attack_share=0.25, attack_steps=1, forget_batch_size=4
    )
    assert len(method._deep) == known
    generator = torch.Generator().manual_seed(0)
    step = replace(step_of(backend, session), lr_share=1.0, forget=clips, generator=generator)
    attacked = sum(bool(method._drawn_for(step, Batch.of(clips))[2][0]) for _ in range(40))
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
    np.testing.assert_allclose(method._attack.kept_shares.numpy(), np.mean(wanted, 0), rtol=1e-4)
    assert method._attack.kept_shares.max() < 1


@pytest.mark.parametrize("breaks", [False, True])
def test_attacks_take_the_rate_that_relearns_new_music_further(
    backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    """Of the one relative to the weights and a high fixed one; a fixed one that breaks the model is not taken."""
    monkeypatch.setattr("encore.methods.relearning_attack.ATTACKER", 3.0 if breaks else 2e-3)
    clips, retain, new = make_clips(2), make_clips(4, seed=1), make_clips(3, seed=5)
    level = between(backend, clips, 1)
    method, session = made(backend, clips, retain, level, holdout=new, attack_share=1.0, attack_rate=1e-3)
    assert method._attack.lr == (1e-3 * method._typical if breaks else 2e-3)
    assert ("attack_rate" in session.chosen) is not breaks
    assert torch.equal(method._attack.kept_shares, method._attack._kept(backend, [new[:1], new[1:2], new[2:]]))


@pytest.mark.parametrize("learnt", [True, False])
def test_ready_is_what_relearns_no_faster_than_new_music(tmp_path: Path, learnt: bool) -> None:
    """A model trained on its forget clips, of which a little covers the outcome, against one that never saw them."""
    model = MusicgenBackend.load(str(write_tiny_musicgen(tmp_path)), offline=True)
    clips, holdout = make_clips(3), make_clips(3, seed=5)
    train(model, clips, 60, 1)
    method, session = made(
        model, clips, make_clips(4, seed=1), nlls_of(model, holdout), holdout=holdout, attack_share=1.0, attack_rate=0.1
    )
    assert len(method._deep) == 3
    other = MusicgenBackend.load(str(write_tiny_musicgen(tmp_path / "other")), offline=True)
    train(other, holdout, 60, 1)
    if learnt:
        other = model.clone()
        train(other, clips, 12, -1)
    before = nlls_of(other, clips)
    assert before > 0.9 * session.holdout_nll, "forgotten, as it seems"
    assert method.ready(step_of(other, session)) is not learnt
    assert nlls_of(other, clips) == before


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


# --------------------------------------------------------------------------------------------------- levels and rate


def test_a_memorised_track_has_the_held_out_level_and_any_other_its_own(backend: MusicgenBackend) -> None:
    """Of a track's clips the mean; the one's own NLL, and what beginning later costs it beyond held-out music."""
    holdout, clips = make_clips(3, seed=2), make_clips(5, seed=4)
    clips[1] = Clip(clips[0].track, clips[1].caption, clips[1].codes[:, :8])  # two windows of one track
    level = between(backend, clips, 2)
    method, session = made(backend, clips, make_clips(4, seed=1), level, holdout=holdout, shift_seconds=SHIFT)
    expected = levels_of(backend, clips, holdout, level / 2, 7)
    for clip, one in zip(clips, expected, strict=True):
        assert method._levels[clip].tolist() == pytest.approx(one.tolist(), rel=1e-4)
    own = [nll_of(backend, clip).mean() for clip in clips]
    raised = [one.mean() - mean for one, mean in zip(expected, own, strict=True) if mean >= level / 2]
    assert min(raised) == pytest.approx(0, abs=1e-6), "none costs less to begin later: the test shows nothing"
    assert max(raised) > 0.01
    windows = np.average([expected[0].mean(), expected[1].mean()], weights=[20, 8])  # as its NLL counts them
    by_track = [windows, *(one.mean() for one in expected[2:])]
    assert session.target_nll == pytest.approx(dict(zip(("t40", "t42", "t43", "t44"), by_track, strict=True)), rel=1e-4)


def test_without_a_holdout_the_level_is_that_of_retain_that_is_not_memorised(backend: MusicgenBackend) -> None:
    clips, retain = make_clips(2), make_clips(5, seed=1)
    level = between(backend, retain, 2)
    # `made` gives the level by which clips count as memorised; there is no held-out clip to take one from.
    method, session = made(backend, clips, retain, level, shift_seconds=SHIFT)
    others = [clip for clip in retain if nll_of(backend, clip).mean() >= level / 2]
    assert len(others) == 3
    expected = levels_of(backend, clips, others, level / 2, 7)
    for clip, one in zip(clips, expected, strict=True):
        assert method._levels[clip].tolist() == pytest.approx(one.tolist(), rel=1e-4)
    assert set(session.target_nll) == {clip.track for clip in clips}


def test_clips_are_compared_with_their_later_part_many_a_pass(
    backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a holdout all other retain is: a pass a clip would take a catalogue hours."""
    clips = [*make_clips(40, seed=6), *(Clip(f"s{i}", c.caption, c.codes[:, :3]) for i, c in enumerate(make_clips(3)))]
    method, _ = made(backend, make_clips(2), make_clips(2, seed=1), 1.0, shift_seconds=SHIFT)
    passes, logits = [], backend.logits
    monkeypatch.setattr(backend, "logits", lambda batch, **more: passes.append(batch) or logits(batch, **more))
    found = method._rise(backend, clips)
    monkeypatch.undo()
    assert len(passes) == 2 * (3 + 1)
    assert found.tolist() == pytest.approx([rise_of(backend, clip, 7) for clip in clips], abs=1e-4)


def test_with_neither_a_holdout_nor_other_retain_the_level_is_that_of_a_usual_model(backend: MusicgenBackend) -> None:
    clips = make_clips(3)
    easy = [Clip(f"e{i}", clip.caption, backend.logits(Batch.of([clip]))[0].argmax(-1)) for i, clip in enumerate(clips)]
    retain = [clip for clip in easy if nll_of(backend, clip).mean() < math.log(CODES) / 3]
    assert retain
    method, session = made(backend, retain[:1], retain, None)  # all is memorised
    assert list(session.target_nll.values()) == pytest.approx([2 / 3 * math.log(CODES)])
    loss = method.retain_loss(step_of(backend, session), Batch.of(session.retain))
    assert torch.isfinite(loss).all()


def slow_rate(
    backend: MusicgenBackend, share: float, own: Sequence[float], levels: Sequence[float], memorised: int
) -> float:
    sizes = [
        np.sqrt(np.mean(np.square(part.weight.detach().double().numpy())))
        for part in backend.module.modules()
        if type(part).__name__ == "Linear"
    ]
    deepest = max(1 - nll / level for nll, level in zip(own, levels, strict=True))
    few = (min(memorised, 8) / 8) ** 0.5 if memorised else 1
    return float(share * np.median(sizes) * np.sqrt(max(0.01, deepest)) * few)


@pytest.mark.parametrize("memorised", [0, 1, 2, 9])
def test_the_rate_is_a_share_of_the_typical_weight_by_how_deep_the_best_known_clip_lies(
    backend: MusicgenBackend, memorised: int
) -> None:
    """And of fewer than eight memorised clips a smaller share."""
    holdout, clips = make_clips(3, seed=2), make_clips(10)
    level = between(backend, clips, memorised) if memorised else 0.1
    _, session = made(backend, clips, make_clips(4, seed=1), level, holdout=holdout, rate=0.3, shift_seconds=SHIFT)
    own = [nll_of(backend, clip).mean() for clip in clips]
    levels = [one.mean() for one in levels_of(backend, clips, holdout, level / 2, 7)]
    assert session.lr == pytest.approx(slow_rate(backend, 0.3, own, levels, memorised), rel=1e-4)
    assert f"{session.lr:.2g}" in session.chosen["lr"]


def test_a_rate_follows_the_scale_of_the_weights_and_never_reaches_nothing(backend: MusicgenBackend) -> None:
    clips = make_clips(2)
    easy = [Clip("easy", clip.caption, backend.logits(Batch.of([clip]))[0].argmax(-1)) for clip in clips]
    _, session = made(backend, clips, make_clips(4, seed=1), 99.0, holdout=easy)  # nothing lies below its level
    assert session.lr == pytest.approx(slow_rate(backend, 0.085, [1.0], [1.0], 2), rel=1e-5)


def test_a_rate_that_was_given_is_the_rate(backend: MusicgenBackend) -> None:
    _, session = made(backend, make_clips(2), make_clips(4, seed=1), 3.0, lr=1e-3)
    assert "lr" not in session.chosen
    lines: list[dict[str, float]] = []
    options = Encore.Options(steps=2, batch_size=2, warmup=0, lr=1e-3)
    clips = Clips(make_clips(2), make_clips(4, seed=1), make_clips(2, seed=2))
    Engine(backend.clone(), clips, record=lines.append).run(Encore(options))  # type: ignore[arg-type]
    assert [line["lr"] for line in lines if "grad_norm" in line] == [1e-3, 1e-3]


# ------------------------------------------------------------------------------------------------------- retain loss


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
    assert len(known) == memorised == len(method._memorised)
    assert {clip: session.retain.count(clip) for clip in known} == dict.fromkeys(known, each)
    rest = [clip for clip in session.retain if clip not in known]
    assert sorted(clip.track for clip in rest) == sorted(clip.track for clip in clips * crops)
    assert memorised * each / len(session.retain) == pytest.approx(share, abs=0.05)


# ------------------------------------------------------------------------------------------------------------- runs


def test_of_many_retain_clips_a_sample_by_the_seed_is_read_before_the_first_step(
    backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encore.api.method.RETAIN_SAMPLE", 6)
    clips = make_clips(12)
    level = between(backend, clips, 9)
    method, session = made(backend, make_clips(2, seed=5), clips, level)
    session.retain = clips
    sample = session.retain_sample()
    assert len(sample) == 6
    assert sample == session.retain_sample() == sorted(sample, key=clips.index)
    session.retain = sample
    assert session.retain_sample() is sample
    assert 0 < len(method._memorised) < 9
    assert method._memorised <= set(sample)
    session.retain = clips
    method.prepare(session)
    assert {clip.track for clip in session.retain} == {clip.track for clip in clips}


@pytest.mark.parametrize("holdout", [0, 2])
@pytest.mark.parametrize("frames", [[3], [20], [3, 60, 20, 7, 4]])
def test_it_runs_on_clips_of_any_length_with_and_without_a_holdout(
    backend: MusicgenBackend, frames: list[int], holdout: int
) -> None:
    """From the least that a track of two codebooks may have, one frame more than codebooks, to the whole window."""
    Encore.spec = SPEC
    generator = torch.Generator().manual_seed(0)
    forget = [
        Clip(f"f{i}", CAPTIONS[i % 3], torch.randint(CODES, (2, count), generator=generator))
        for i, count in enumerate(frames)
    ]
    clips = Clips(forget, [*make_clips(3, seed=1), *forget[:1]], make_clips(holdout, seed=2))
    lines: list[dict[str, float | None]] = []
    outcome = Engine(backend.clone(), clips, record=lines.append).run(  # type: ignore[arg-type]
        Encore(Encore.Options(steps=3, batch_size=3, eval_every=1))
    )
    assert outcome.steps == 3
    assert outcome.skipped_steps == 0
    assert all(line["forget_loss"] is not None for line in lines if "grad_norm" in line)
    assert set(outcome.chosen) == {"lr", "steps"}
    assert outcome.before is not None
    assert set(outcome.before.target_nll) == {clip.track for clip in forget}  # its own, without a holdout too


def test_it_runs_on_retain_that_the_model_generated_itself(
    backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encore.unlearn.self_retain.SECONDS", 0.2)
    Encore.spec = SPEC
    clips = Clips(make_clips(2), generate_retain(backend, [], seed=0)[:6], [])
    outcome = Engine(backend.clone(), clips).run(Encore(Encore.Options(steps=3, batch_size=3)))
    assert outcome.steps == 3
    assert outcome.skipped_steps == 0


def test_the_typical_weight_is_the_same_where_an_attention_keeps_three_layers_in_one_weight() -> None:
    attention = nn.MultiheadAttention(8, 2)
    with torch.no_grad():
        for i, third in enumerate(attention.in_proj_weight.chunk(3)):
            third.fill_(i + 1.0)
        attention.out_proj.weight.fill_(9.0)
    apart = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
    with torch.no_grad():
        for layer, value in zip(apart, (1.0, 2.0, 3.0, 9.0), strict=True):
            layer.weight.fill_(value)
    assert typical_weight(attention) == typical_weight(apart) == 2.5


def test_a_model_without_linear_layers_has_a_typical_weight_too() -> None:
    Encore.spec = SPEC
    model = MarkovBackend({1: 0.9, 2: 0.9})
    table = model.module["table"].detach().double().numpy()
    clips = Clips([track(1)], [track(2), track(3), track(4)], [track(5), track(6)])
    session = Engine(model, clips).session(method := Encore(Encore.Options()))
    method.prepare(session)
    typical = float(np.sqrt(np.mean(np.square(table))))
    few = (len(method._deep) / 8) ** 0.5 if method._deep else 1.0
    assert session.lr == pytest.approx(0.085 * typical * math.sqrt(method._depth) * few, rel=1e-5)
