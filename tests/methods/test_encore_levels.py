"""The default method: its target NLLs and its rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.methods.encore_answers import (
    SHIFT,
    SPEC,
    between,
    levels_of,
    made,
    make_clips,
    nll_of,
    rise_of,
    step_of,
)
from tests.metrics.markov import MarkovBackend, track
from tests.tiny_model import CAPTIONS, CODES
from torch import nn

from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.methods.encore import Encore
from encore.methods.weight_scale import median_weight_rms
from encore.unlearn.engine import Clips, Engine


def test_a_memorised_track_has_the_held_out_level_and_any_other_its_own(backend: MusicgenBackend) -> None:
    """Of a track's clips the mean; the one's own NLL, and what beginning later costs it beyond held-out music."""
    holdout, clips = make_clips(3, seed=2), make_clips(5, seed=4)
    clips[1] = Clip(clips[0].track, clips[1].caption, clips[1].codes[:, :8])  # two windows of one track
    level = between(backend, clips, 2)
    method, session = made(backend, clips, make_clips(4, seed=1), level, holdout=holdout, shift_seconds=SHIFT)
    expected = levels_of(backend, clips, holdout, level / 2, 7)
    for clip, one in zip(clips, expected, strict=True):
        assert method._target_nll[clip].tolist() == pytest.approx(one.tolist(), rel=1e-4)
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
        assert method._target_nll[clip].tolist() == pytest.approx(one.tolist(), rel=1e-4)
    assert set(session.target_nll) == {clip.track for clip in clips}


def test_clips_are_compared_with_their_later_part_many_a_pass(
    backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a holdout all other retain is: a pass a clip would take a catalogue hours."""
    clips = [*make_clips(40, seed=6), *(Clip(f"s{i}", c.caption, c.codes[:, :3]) for i, c in enumerate(make_clips(3)))]
    method, _ = made(backend, make_clips(2), make_clips(2, seed=1), 1.0, shift_seconds=SHIFT)
    passes, logits = [], backend.logits
    monkeypatch.setattr(backend, "logits", lambda batch, **more: passes.append(batch) or logits(batch, **more))
    found = method._shift_rise(backend, clips)
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
def test_the_rate_is_relative_to_the_weights_and_to_the_largest_gap_to_a_target(
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


@pytest.mark.parametrize(("inputs", "share"), [(64, 1.0), (128, 1.0), (512, 0.5), (2048, 0.25)])
def test_the_rate_falls_with_the_inputs_of_wide_layers(backend: MusicgenBackend, inputs: int, share: float) -> None:
    """By their square root, beside what the size of the weights takes."""
    method, session = made(backend, make_clips(8), make_clips(4, seed=1), 99.0)
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(inputs, 4), nn.Linear(inputs, inputs))
    with torch.no_grad():
        for weight in layers.parameters():
            weight.fill_(-0.02)
    session.backend = SimpleNamespace(module=layers)  # type: ignore[assignment]
    method._set_rate(session)
    assert session.lr == pytest.approx(0.085 * 0.02 * math.sqrt(method._largest_gap) * share)
    assert f"layers of {inputs} inputs" in session.chosen["lr"]


def test_a_rate_that_was_given_is_the_rate(backend: MusicgenBackend) -> None:
    _, session = made(backend, make_clips(2), make_clips(4, seed=1), 3.0, lr=1e-3)
    assert "lr" not in session.chosen
    lines: list[dict[str, float]] = []
    options = Encore.Options(steps=2, batch_size=2, warmup=0, lr=1e-3)
    clips = Clips(make_clips(2), make_clips(4, seed=1), make_clips(2, seed=2))
    Engine(backend.clone(), clips, record=lines.append).run(Encore(options))  # type: ignore[arg-type]
    assert [line["lr"] for line in lines if "grad_norm" in line] == [1e-3, 1e-3]


def test_the_median_weight_rms_is_the_same_where_an_attention_keeps_three_layers_in_one_weight() -> None:
    attention = nn.MultiheadAttention(8, 2)
    with torch.no_grad():
        for i, third in enumerate(attention.in_proj_weight.chunk(3)):
            third.fill_(i + 1.0)
        attention.out_proj.weight.fill_(9.0)
    apart = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
    with torch.no_grad():
        for layer, value in zip(apart, (1.0, 2.0, 3.0, 9.0), strict=True):
            layer.weight.fill_(value)
    assert median_weight_rms(attention) == median_weight_rms(apart) == 2.5


def test_a_model_without_linear_layers_has_a_median_weight_rms_too() -> None:
    Encore.spec = SPEC
    model = MarkovBackend({1: 0.9, 2: 0.9})
    table = model.module["table"].detach().double().numpy()
    clips = Clips([track(1)], [track(2), track(3), track(4)], [track(5), track(6)])
    session = Engine(model, clips).session(method := Encore(Encore.Options()))
    method.prepare(session)
    typical = float(np.sqrt(np.mean(np.square(table))))
    few = (len(method._memorised_forget) / 8) ** 0.5 if method._memorised_forget else 1.0
    assert session.lr == pytest.approx(0.085 * typical * math.sqrt(method._largest_gap) * few, rel=1e-5)


def test_clips_that_any_model_predicts_are_not_memorised(
    backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A low NLL is no memory where the codes are as predictable: no teacher, no attack, a target just above its NLL."""
    monkeypatch.undo()
    generator = torch.Generator().manual_seed(0)
    varied = Clip("varied", CAPTIONS[0], torch.randint(CODES, (2, 40), generator=generator))
    tone = Clip("tone", CAPTIONS[1], torch.full((2, 40), 3))
    nll = {"varied": 0.1, "tone": 0.1, "new": 2.5}
    monkeypatch.setattr(
        "encore.methods.encore.codebook_nll",
        lambda _, clips, *__: torch.tensor([[nll.get(clip.track, 2.5)] * 2 for clip in clips]),
    )
    method, session = made(backend, [varied, tone], [varied, tone, *make_clips(2)], 2.5, holdout=make_clips(3, seed=5))
    assert method._memorised_forget == {varied}
    assert method._memorised_retain == {varied}
    assert session.target_nll["tone"] < 1 < session.target_nll["varied"]


@pytest.mark.parametrize(("count", "first"), [(1, 29), (3, 29), (6, 44), (8, 59)])
def test_relearning_is_tried_after_thirty_visits_of_each_memorised_clip(
    backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch, count: int, first: int
) -> None:
    """A step visits four clips; where none is memorised there is nothing to try."""
    clips, holdout = make_clips(count), make_clips(3, seed=5)
    method, session = made(backend, clips, make_clips(2, seed=1), 1e6, holdout=holdout, attack_share=0.5)
    tried: list[int] = []
    monkeypatch.setattr(method._attack, "resisted", lambda step, *_: tried.append(step.index) or True)
    ready = [method.ready(replace(step_of(backend, session), index=index)) for index in range(70)]
    assert ready.index(True) == first
    assert tried == list(range(first, 70))
    unknown, session = made(backend, clips, make_clips(2, seed=1), 1e-6, holdout=holdout, attack_share=0.5)
    assert unknown.ready(step_of(backend, session))
