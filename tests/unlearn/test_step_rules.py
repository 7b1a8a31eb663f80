"""Each option of the loop against a step that is written out, on a double-precision model and plain SGD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encore.api import Batch, Clip, LossMethod, MethodSpec, Session, Step
from encore.backends.musicgen import MusicgenBackend
from encore.errors import UsageError
from encore.hashing import module_sha256
from encore.methods.ft import FineTune
from encore.methods.ga import GradientAscent
from encore.options import Options, TrainOptions
from encore.stop_signals import Interrupted, StopFlag
from encore.store.run_folder import Checkpoints
from encore.unlearn import sharding
from encore.unlearn.adapter import refuse_unadaptable
from encore.unlearn.engine import Clips, Engine
from encore.unlearn.step_rules import SignDescent, check, held_copies, without_components

RATE = 0.01


class Plain(LossMethod):
    """-L_f + L_r by SGD."""

    spec = MethodSpec("plain", "", "", needs={"retain"})
    Options = TrainOptions

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        return -step.backend.losses(batch)

    def optimizer(self, parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr)


def options(**given: Any) -> TrainOptions:
    plain = {"steps": 1, "warmup": 0, "schedule": "constant", "eval_every": 1, "stop": "never", "select": "last"}
    sizes = {"batch_size": 7, "forget_batch_size": 5, "micro_batch_size": 3, "max_grad_norm": 1e9}
    return TrainOptions(**{**plain, **sizes, "lr": RATE, **given})


@pytest.fixture
def double(tiny_folder: Path) -> MusicgenBackend:
    backend = MusicgenBackend.load(str(tiny_folder), offline=True)  # clones share the frozen parts
    backend.model.double()
    return backend


def gradients(backend: MusicgenBackend, clips: Sequence[Clip], sign: float = 1.0) -> list[Tensor]:
    """Of ±L, in the order of the parameters."""
    loss = sign * backend.losses(Batch.of(clips)).mean()
    found = torch.autograd.grad(loss, list(backend.module.parameters()), allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(backend.module.parameters(), found, strict=True)]


def norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).norm()


def rounded_to_4_bits(weight: Tensor) -> Tensor:
    if weight.dim() < 2:
        return weight
    rows = [row / scale for row in weight if (scale := row.abs().max() / 7)]
    return torch.stack([row.round() * (whole.abs().max() / 7) for row, whole in zip(rows, weight, strict=True)])


def at(backend: MusicgenBackend, change: Callable[[int, Tensor], Tensor]) -> MusicgenBackend:
    """A copy with changed weights."""
    other = backend.clone()
    with torch.no_grad():
        for i, weight in enumerate(other.module.parameters()):
            weight.copy_(change(i, weight.detach().clone()))
    return other


def sam(backend: MusicgenBackend, clips: Clips) -> list[Tensor]:
    first = gradients(backend, clips.forget, -1)
    length = 0.05 * norm([w.detach() for w in backend.module.parameters()]) / norm(first)
    worst = at(backend, lambda i, weight: weight + length * first[i])
    return [f + r for f, r in zip(gradients(worst, clips.forget, -1), gradients(backend, clips.retain), strict=True)]


def repselect(backend: MusicgenBackend, clips: Clips) -> list[Tensor]:
    kept = []
    for gradient in gradients(backend, clips.forget, -1):
        if gradient.dim() > 1:
            u, s, v = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
            s[:2] = 0
            gradient = (u * s @ v).view_as(gradient)
        kept.append(gradient)
    return [f + r for f, r in zip(kept, gradients(backend, clips.retain), strict=True)]


def int4(backend: MusicgenBackend, clips: Clips) -> list[Tensor]:
    coarse = at(backend, lambda _, weight: rounded_to_4_bits(weight))
    return [f + r for f, r in zip(gradients(coarse, clips.forget, -1), gradients(coarse, clips.retain), strict=True)]


def sign(backend: MusicgenBackend, clips: Clips) -> list[Tensor]:
    whole = zip(gradients(backend, clips.forget, -1), gradients(backend, clips.retain), strict=True)
    return [(f + r).sign() for f, r in whole]


@pytest.mark.parametrize(
    ("slow", "given", "tolerance"),
    [
        (sam, {"optim": "sam", "sam_radius": 0.05}, 1e-9),
        (repselect, {"optim": "repselect", "components": 2}, 1e-6),
        (int4, {"robust_to": "int4"}, 1e-9),
        (sign, {"optim": "sign"}, 1e-9),
    ],
)
def test_a_step_is_the_formula(
    double: MusicgenBackend, clips: Clips, slow: Any, given: dict[str, Any], tolerance: float
) -> None:
    expected = [
        weight.detach() - RATE * step
        for weight, step in zip(double.module.parameters(), slow(double, clips), strict=True)
    ]
    Engine(double, clips).run(Plain(options(**given)))
    for weight, value in zip(double.module.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.detach(), value, rtol=0, atol=tolerance)


def test_the_retain_budget_weighs_retain_by_dual_steps(double: MusicgenBackend, clips: Clips) -> None:
    slow, lines = double.clone(), list[Any]()
    Engine(double, clips, record=lines.append).run(
        Plain(options(steps=3, retain_budget=0.01, dual_rate=50.0, lr=0.05, per_track_clip=None))
    )
    snapshots = [line for line in lines if "snapshot" in line]
    watched = [line["snapshot"]["memorised"] | line["snapshot"]["not_memorised"] for line in snapshots]
    before = {clip.track: slow.losses(Batch.of([clip])).item() for clip in clips.retain}
    weight = 1.0
    for line, values in zip(snapshots, watched, strict=True):
        assert line["retain_weight"] == pytest.approx(weight)
        parts = gradients(slow, clips.forget, -1), gradients(slow, clips.retain)
        with torch.no_grad():
            for theta, f, r in zip(slow.module.parameters(), *parts, strict=True):
                theta -= 0.05 * (f + weight * r)
        rise = sum(values[track] - before[track] for track in values) / len(values)
        weight = max(0.0, weight + 50.0 * (rise - 0.01))
    assert weight != 1.0
    for theta, expected in zip(double.module.parameters(), slow.module.parameters(), strict=True):
        torch.testing.assert_close(theta, expected, rtol=0, atol=1e-9)


EVERY = [
    {"optim": "sam", "retain_budget": 0.01, "robust_to": "int4", "dropout": True},
    {"optim": "repselect", "per_track_clip": 0.5},
    {"optim": "sign", "weight_decay": 0.1},
]


@pytest.mark.parametrize("given", EVERY, ids=lambda given: given["optim"])
def test_masked_weights_stay_and_a_resumed_run_is_the_same(
    backend: MusicgenBackend, clips: Clips, tmp_path: Path, given: dict[str, Any]
) -> None:
    name, _ = max(backend.module.named_parameters(), key=lambda item: item[1].numel())

    class Masked(Plain):
        def prepare(self, session: Session) -> None:
            weight = session.backend.module.get_parameter(name)
            session.masks[name] = (torch.arange(weight.numel()) % 2 == 0).view(weight.shape)

    settings = options(steps=5, checkpoint_seconds=0, batch_size=3, forget_batch_size=2, lr=1e-3, **given)
    straight, broken, again = (backend.clone() for _ in range(3))
    Engine(straight, clips, precision="bf16").run(Masked(settings))
    before, after = (one.module.get_parameter(name).detach().flatten() for one in (backend, straight))
    assert torch.equal(before[1::2], after[1::2])
    assert not torch.equal(before[::2], after[::2])
    stop = StopFlag()

    def stop_at(line: Any) -> None:
        stop.number = 15 if line.get("step") == 3 else stop.number

    checkpoints = Checkpoints(tmp_path, "x")
    engine = Engine(broken, clips, precision="bf16", checkpoints=checkpoints, stop=stop, record=stop_at)
    with pytest.raises(Interrupted):
        engine.run(Masked(settings))
    Engine(again, clips, precision="bf16", checkpoints=checkpoints).run(Masked(settings))
    assert module_sha256(again.module) == module_sha256(straight.module)


def test_weights_come_back_when_memory_runs_out(backend: MusicgenBackend, clips: Clips) -> None:
    class Pressed(Plain):
        def forget_loss(self, step: Step, batch: Batch) -> Tensor:
            if len(batch) > 2:
                raise torch.OutOfMemoryError("not that many")
            return super().forget_loss(step, batch)

    calm, pressed = backend.clone(), backend.clone()
    given = {"optim": "sam", "robust_to": "int4"}
    Engine(calm, clips).run(Plain(options(**given)))
    Engine(pressed, clips).run(Pressed(options(**given)))
    for a, b in zip(calm.module.parameters(), pressed.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (5, 4, 3), (3, 1)])
def test_components_are_those_of_the_singular_value_decomposition(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    state = torch.get_rng_state()
    rest = without_components(matrix, 3)
    assert torch.equal(torch.get_rng_state(), state)
    s = torch.linalg.svdvals(matrix.flatten(1))
    removed = min(3, len(s) - 1)
    torch.testing.assert_close(torch.linalg.svdvals(rest.flatten(1))[: len(s) - removed], s[removed:])


def test_sign_descent_decays_weights() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    weight.grad = torch.tensor([0.3, -1e-9, 0.0])
    SignDescent([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.95 - 0.1, -1.9 + 0.1, 2.85]))


def test_memory_counts_what_the_options_hold() -> None:
    assert held_copies(TrainOptions()) == held_copies(Options()) == 0
    assert held_copies(TrainOptions(optim="sam", retain_budget=0.1, robust_to="int4")) == 4
    assert held_copies(TrainOptions(optim="sign")) == -2


class Descent(FineTune):
    spec = MethodSpec("ft", "", "", needs={"retain"})


class Alone(GradientAscent):
    spec = MethodSpec("ga", "", "")


@pytest.mark.parametrize(
    ("refuse", "method", "given", "words"),
    [
        (check, Descent, {"optim": "sam"}, "--optim sam changes the gradient of the forget loss, and method 'ft'"),
        (check, Alone, {"retain_budget": 0.1}, "method 'ga' has only one of them"),
        (check, Descent, {"retain_budget": 0.1}, "method 'ft' has only one of them"),
        (sharding.check, Plain, {"optim": "repselect"}, "--optim repselect needs whole weights"),
        (sharding.check, Plain, {"robust_to": "int8"}, "--robust-to int8 needs whole weights"),
        (refuse_unadaptable, Plain, {"robust_to": "int4"}, "--robust-to rounds the weights"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(refuse: Any, method: Any, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        refuse(method(TrainOptions(**given)))
