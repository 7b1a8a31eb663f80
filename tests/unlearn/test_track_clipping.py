"""Per-track clipping against a float64 loop over tracks, whatever the micro-batch, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.tiny_model import CAPTIONS, CODES
from torch import Tensor

from encore.api import Batch, Clip, LossMethod, MethodSpec, Step
from encore.backends.musicgen import MusicgenBackend
from encore.errors import PluginError
from encore.options import TrainOptions
from encore.unlearn.engine import Clips, Engine
from encore.unlearn.track_clipping import TrackClipping

Weights = dict[str, Tensor]


class Plain(LossMethod):
    """-L_f + L_r."""

    spec = MethodSpec("plain", "", "", needs=frozenset({"retain"}))
    Options = TrainOptions

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        return -step.backend.losses(batch)


@pytest.fixture(scope="module")
def several() -> list[Clip]:
    """Nine clips of five tracks: "a" has three, "b" and "c" two each, not side by side."""
    generator = torch.Generator().manual_seed(1)
    names = ["a", "b", "d", "c", "a", "b", "e", "a", "c"]
    return [
        Clip(name, CAPTIONS[i % 3], torch.randint(CODES, (2, 12 + i % 4), generator=generator))
        for i, name in enumerate(names)
    ]


def slow(backend: MusicgenBackend, clips: Sequence[Clip], most: float) -> tuple[Weights, dict[str, float]]:
    """The clipped gradient and each track's norm, float64, one clip at a time."""
    module = backend.clone()
    module.module.double()
    module.text_embeddings = {caption: states.double() for caption, states in backend.text_embeddings.items()}
    tracks: dict[str, Weights] = {}
    for clip in clips:
        module.module.zero_grad()
        logits = module.logits(Batch.of([clip]))
        mask = module.token_mask(Batch.of([clip]))
        picked = logits[mask].log_softmax(-1).gather(-1, clip.codes[None][mask][:, None])
        (-picked.mean()).backward()  # type: ignore[no-untyped-call]
        own = tracks.setdefault(clip.track, {})
        for name, weight in module.module.named_parameters():
            if weight.grad is not None:
                own[name] = own.get(name, torch.zeros_like(weight)) + weight.grad
    norms = {track: math.sqrt(sum(float((g**2).sum()) for g in own.values())) for track, own in tracks.items()}
    total: Weights = {}
    for track, own in tracks.items():
        for name, grad in own.items():
            total[name] = total.get(name, torch.zeros_like(grad)) + min(1, most / norms[track]) * grad / len(clips)
    return total, norms


def clipped(backend: MusicgenBackend, clips: Sequence[Clip], most: float, micro: int, **more: Any) -> Weights:
    backend.module.zero_grad()
    clipping = TrackClipping(backend.module, most, torch.Generator(), **more)
    loss = clipping.add("loss", lambda part: backend.losses(Batch.of(part)), clips, micro)
    with torch.no_grad():
        mean = torch.stack([backend.losses(Batch.of([clip]))[0] for clip in clips]).mean()
    assert loss == pytest.approx(mean.item(), rel=1e-5)
    return {name: weight.grad for name, weight in backend.module.named_parameters() if weight.grad is not None}


def distance(ours: Weights, theirs: Weights) -> float:
    over = sum(float(((ours[name].double() - theirs[name]) ** 2).sum()) for name in theirs)
    return math.sqrt(over / sum(float((theirs[name] ** 2).sum()) for name in theirs))


@pytest.mark.parametrize("micro", [1, 2, 4, 16])
def test_tracks_are_clipped_as_a_float64_loop_does_it_at_any_micro_batch(
    backend: MusicgenBackend, several: list[Clip], micro: int
) -> None:
    backend.encode_text(CAPTIONS)
    backend.module.eval()
    _, norms = slow(backend, several, math.inf)
    most = sorted(norms.values())[2]  # the middle one of five: some are clipped, some are not
    expected, _ = slow(backend, several, most)
    assert distance(clipped(backend, several, most, micro), expected) < 5e-6


def test_one_clip_a_track_goes_through_one_pass_and_is_clipped(backend: MusicgenBackend, several: list[Clip]) -> None:
    backend.encode_text(CAPTIONS)
    backend.module.eval()
    clips = [Clip(f"{i}", clip.caption, clip.codes) for i, clip in enumerate(several)]
    _, norms = slow(backend, clips, math.inf)
    most = sorted(norms.values())[4]
    told: list[Any] = []
    asked: list[int] = []
    losses = backend.losses

    def counted(batch: Batch) -> Tensor:
        asked.append(len(batch))
        return losses(batch)

    backend.losses = counted  # type: ignore[method-assign]
    ours = clipped(backend, clips, most, 4, record=told.append)
    assert not told
    assert asked[:3] == [4, 4, 1]
    assert distance(ours, slow(backend, clips, most)[0]) < 5e-6


def test_what_was_in_grad_is_added_to(backend: MusicgenBackend, several: list[Clip]) -> None:
    backend.module.eval()
    once = {name: grad.clone() for name, grad in clipped(backend, several, 0.5, 4).items()}
    clipping = TrackClipping(backend.module, 0.5, torch.Generator())
    clipping.add("loss", lambda part: backend.losses(Batch.of(part)), several, 4)
    for name, weight in backend.module.named_parameters():
        if name in once:
            torch.testing.assert_close(weight.grad, 2 * once[name], rtol=1e-4, atol=1e-6)


def run(backend: MusicgenBackend, clips: Clips, method: LossMethod) -> list[Any]:
    lines: list[Any] = []
    Engine(backend, clips, record=lines.append).run(method)
    return lines


def norms(lines: list[Any]) -> list[float]:
    return [line["grad_norm"] for line in lines if "grad_norm" in line]


def options(**given: Any) -> TrainOptions:
    return TrainOptions(**{"steps": 3, "eval_every": 3, "stop": "never", "batch_size": 4, "lr": 1e-3} | given)


@pytest.mark.parametrize("micro", [16, 3])
def test_a_clip_out_of_reach_is_no_clip(backend: MusicgenBackend, clips: Clips, micro: int) -> None:
    free, bound = backend.clone(), backend.clone()
    plain = norms(run(free, clips, Plain(options(micro_batch_size=micro))))
    assert norms(run(bound, clips, Plain(options(micro_batch_size=micro, per_track_clip=1e30)))) == pytest.approx(
        plain, rel=1e-4
    )
    for a, b in zip(free.module.parameters(), bound.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


def test_a_step_is_no_longer_than_the_clip(backend: MusicgenBackend, clips: Clips) -> None:
    found = norms(run(backend, clips, Plain(options(per_track_clip=0.01))))
    assert len(found) == 3
    assert all(0 < norm <= 0.02 * 1.0001 for norm in found)  # forget and retain each add one mean over clips


@pytest.mark.parametrize("forget", [True, False])
def test_a_loss_that_mixes_clips_is_refused_by_name(backend: MusicgenBackend, clips: Clips, forget: bool) -> None:
    def mixed(step: Step, batch: Batch) -> Tensor:
        losses = step.backend.losses(batch)
        return losses + losses.mean()

    class Mixing(Plain):
        def forget_loss(self, step: Step, batch: Batch) -> Tensor:
            return mixed(step, batch) if forget else super().forget_loss(step, batch)

        def retain_loss(self, step: Step, batch: Batch) -> Tensor:
            return super().retain_loss(step, batch) if forget else mixed(step, batch)

    with pytest.raises(PluginError, match=f"{'forget' if forget else 'retain'}_loss mixes its clips"):
        run(backend, clips, Mixing(options(per_track_clip=1.0)))


def halves(losses: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """Two forward passes for one loss, as methods do that treat some clips differently."""
    return torch.cat([losses(Batch.of(part)) for part in (batch.clips[:1], batch.clips[1:]) if part])


def test_what_one_pass_can_not_serve_is_done_clip_by_clip_and_said_once(
    backend: MusicgenBackend, several: list[Clip]
) -> None:
    backend.encode_text(CAPTIONS)
    backend.module.eval()
    clips = [Clip(f"{i}", clip.caption, clip.codes) for i, clip in enumerate(several)]
    told: list[Any] = []
    generator = torch.Generator().manual_seed(3)
    drawn: list[float] = []

    def ask(part: Sequence[Clip]) -> Tensor:
        drawn.extend(torch.rand(len(part), generator=generator).tolist())
        return halves(backend.losses, Batch.of(part))

    TrackClipping(backend.module, 1.0, generator, told.append).add("loss", ask, clips, 4)
    ours = {name: weight.grad for name, weight in backend.module.named_parameters() if weight.grad is not None}
    assert distance(ours, slow(backend, clips, 1.0)[0]) < 5e-6
    assert [line["event"] for line in told] == ["one clip per pass"]
    assert drawn[4:] == torch.rand(9, generator=torch.Generator().manual_seed(3)).tolist()
