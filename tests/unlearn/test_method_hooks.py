"""What a method may do beside its losses, as outsiders would write SCRUB, RMU, UNDIAL, EMA and an adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import DirectoryPath, FilePath
from torch import Tensor, nn
from torch.nn.utils import parametrize

from encore.api import Backend, Batch, Clip, EditMethod, LossMethod, MethodSpec, Phase, Session, Step
from encore.backends.musicgen import MusicgenBackend
from encore.errors import PluginError, UsageError
from encore.hashing import module_sha256
from encore.losses import clip_mean, kl_divergence, token_cross_entropy
from encore.options import Options, TrainOptions
from encore.stop_signals import Interrupted, StopFlag
from encore.store.run_folder import Checkpoints
from encore.testing import methods
from encore.testing.fixture import Fixture
from encore.unlearn.config import ForgetConfig
from encore.unlearn.engine import Clips, Engine
from encore.unlearn.records import option_files
from encore.unlearn.reference import FrozenReference
from encore.unlearn.run import prepare


def options(kind: type[TrainOptions] = TrainOptions, **given: Any) -> Any:
    return kind(**{"steps": 4, "eval_every": 2, "stop": "never", "batch_size": 4, "lr": 1e-3, "warmup": 0} | given)


def run(backend: MusicgenBackend, clips: Clips, method: Any, **engine: Any) -> list[Any]:
    lines: list[Any] = []
    Engine(backend, clips, record=lines.append, **engine).run(method)
    return lines


class Scrub(LossMethod):
    """Ascent of the KL to the base on forget, then descent on retain, in turn (arXiv 2302.09880)."""

    spec = MethodSpec("scrub", "", "", needs={"retain", "reference", "logits"})
    Options = TrainOptions

    def phase(self, index: int) -> Phase:
        return "forget" if index % 2 == 0 else "retain"

    def _kl(self, step: Step, batch: Batch) -> Tensor:
        assert step.reference is not None
        mask = step.backend.token_mask(batch)
        return clip_mean(kl_divergence(step.reference.logits(batch), step.backend.logits(batch), mask), mask)

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        return -self._kl(step, batch)

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return self._kl(step, batch) + step.backend.losses(batch)


def test_phases_alternate_with_one_optimizer(backend: MusicgenBackend, clips: Clips) -> None:
    indices: list[int] = []

    class Noted(Scrub):
        def after_step(self, step: Step) -> None:
            indices.append(step.index)

    lines = [line for line in run(backend, clips, Noted(options())) if "lr" in line]
    assert indices == [0, 1, 2, 3]
    assert [sorted({"forget_loss", "retain_loss"} & line.keys()) for line in lines] == [
        ["forget_loss"], ["retain_loss"], ["forget_loss"], ["retain_loss"],
    ]  # fmt: skip


def test_another_phase_is_refused(backend: MusicgenBackend, clips: Clips) -> None:
    class Wrong(Scrub):
        def phase(self, index: int) -> Any:
            return "forgetting"

    with pytest.raises(PluginError, match="'forgetting', not both, forget or retain"):
        run(backend, clips, Wrong(options()))


class Ascent(LossMethod):
    spec = MethodSpec("ascent", "", "")
    Options = TrainOptions

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        return -step.backend.losses(batch)


class Sgd(Ascent):
    def optimizer(self, parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        head, rest = parameters[:1], parameters[1:]
        groups = [{"params": head, "lr": lr / 10}, {"params": rest, "lr": lr}]
        return torch.optim.SGD(groups, momentum=0.9)


def test_a_method_brings_its_optimizer_and_the_schedule_scales_each_group(
    backend: MusicgenBackend, clips: Clips
) -> None:
    slow = backend.clone()
    settings = options(steps=3, schedule="linear", select="last", eval_every=3, max_grad_norm=1e9)
    lines = [line for line in run(backend, clips, Sgd(settings)) if "lr" in line]
    parameters = list(slow.module.parameters())
    velocity = [torch.zeros_like(weight) for weight in parameters]
    shares = [line["lr"] / 1e-4 for line in lines]
    assert shares[0] > shares[-1] > 0
    for share in shares:
        slow.module.zero_grad()
        (-slow.losses(Batch.of(clips.forget)).mean()).backward()
        with torch.no_grad():
            for i, weight in enumerate(parameters):
                if weight.grad is not None:
                    velocity[i] = 0.9 * velocity[i] + weight.grad
                    weight -= share * (1e-4 if i == 0 else 1e-3) * velocity[i]
    for ours, theirs in zip(backend.module.parameters(), parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


class Ema(Ascent):
    """Ends with the exponential average of the weights."""

    def prepare(self, session: Session) -> None:
        self.average = {n: w.detach().clone() for n, w in session.backend.module.named_parameters()}

    def after_step(self, step: Step) -> None:
        for name, weight in step.backend.module.named_parameters():
            self.average[name].lerp_(weight, 0.5)

    def finish(self, session: Session) -> None:
        for name, weight in session.backend.module.named_parameters():
            weight.copy_(self.average[name])

    def state_dict(self) -> dict[str, Tensor]:
        return self.average

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.average = state


def test_weights_are_averaged_after_each_step_and_written_at_the_end(backend: MusicgenBackend, clips: Clips) -> None:
    mean = [weight.detach().clone() for weight in backend.module.parameters()]

    class Noted(Ema):
        def after_step(self, step: Step) -> None:
            super().after_step(step)
            for average, weight in zip(mean, step.backend.module.parameters(), strict=True):
                average.copy_((average + weight) / 2)

    run(backend, clips, Noted(options()))
    for ours, theirs in zip(backend.module.parameters(), mean, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("method", [Ema, Sgd])
def test_a_resumed_run_keeps_the_methods_state_and_the_optimizers(
    method: type[LossMethod], backend: MusicgenBackend, clips: Clips, tmp_path: Path
) -> None:
    whole, stopped, resumed = backend.clone(), backend.clone(), backend.clone()
    settings = options(steps=6, checkpoint_seconds=1e9, dropout=True, forget_batch_size=2)
    run(whole, clips, method(settings))
    flag = StopFlag()
    lines: list[Any] = []

    def note(line: Any) -> None:
        lines.append(line)
        if line.get("step") == 3:
            flag.number = 15

    with pytest.raises(Interrupted):
        Engine(stopped, clips, checkpoints=Checkpoints(tmp_path, identity="hooks"), record=note, stop=flag).run(
            method(settings)
        )
    lines = run(resumed, clips, method(settings), checkpoints=Checkpoints(tmp_path, identity="hooks"))
    assert {"event": "resumed", "phase": 1, "step": 3} in lines
    assert module_sha256(whole.module) == module_sha256(resumed.module)


def test_a_nested_state_is_refused(backend: MusicgenBackend, clips: Clips, tmp_path: Path) -> None:
    class Nested(Ema):
        def state_dict(self) -> Any:
            return {"average": self.average}

    with pytest.raises(PluginError, match="state_dict must return tensors by name, and nothing nested"):
        run(backend, clips, Nested(options(checkpoint_seconds=0)), checkpoints=Checkpoints(tmp_path, "hooks"))


class LowRank(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.full((2, weight.shape[1]), 0.1))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


class Adapter(Ascent):
    """Trains a low-rank addition to one matrix, and merges it."""

    merges = True

    def prepare(self, session: Session) -> None:
        session.backend.module.requires_grad_(False)
        self.layer = next(part for part in session.backend.module.modules() if isinstance(part, nn.Linear))
        parametrize.register_parametrization(self.layer, "weight", LowRank(self.layer.weight))

    def finish(self, session: Session) -> None:
        if self.merges:
            parametrize.remove_parametrizations(self.layer, "weight")


def test_an_adapter_is_trained_and_merged(backend: MusicgenBackend, clips: Clips) -> None:
    before = {name: weight.clone() for name, weight in backend.module.state_dict().items()}
    method = Adapter(options(select="last"))
    run(backend, clips, method)
    after = backend.module.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert after.keys() == before.keys()
    assert len(changed) == 1
    difference = after[changed[0]] - before[changed[0]]
    assert 1 <= torch.linalg.matrix_rank(difference, atol=1e-6) <= 2


def test_an_adapter_left_in_the_model_is_refused(backend: MusicgenBackend, clips: Clips) -> None:
    class Left(Adapter):
        merges = False

    with pytest.raises(PluginError, match=r"left other weights than the model had.*merge what it adds in finish"):
        run(backend, clips, Left(options()))


@pytest.mark.parametrize("depth", [0.01, 0.5, 1.0])
def test_hidden_states_are_the_output_of_a_block(backend: MusicgenBackend, clips: Clips, depth: float) -> None:
    batch = Batch.of(clips.forget[:3])
    layers = backend.model.decoder.model.decoder.layers
    chosen = layers[max(1, round(depth * len(layers))) - 1]
    outputs: list[Any] = []
    handle = chosen.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    with torch.no_grad():
        backend.logits(batch)
    handle.remove()
    expected = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    states = backend.hidden(batch, depth)
    assert states.shape[:2] == (3, batch.codes.shape[-1])
    torch.testing.assert_close(states, expected)
    states.square().mean().backward()
    assert sum(weight.grad is not None for weight in chosen.parameters()) > 0
    for later in list(layers)[list(layers).index(chosen) + 1 :]:
        assert all(weight.grad is None for weight in later.parameters())
    reference = FrozenReference(backend)
    torch.testing.assert_close(reference.hidden(batch, depth), expected)
    assert not reference.hidden(batch, depth).requires_grad


def test_a_backend_without_blocks_refuses(backend: MusicgenBackend, clips: Clips) -> None:
    class Blockless(MusicgenBackend):
        blocks = property(super(MusicgenBackend, MusicgenBackend).blocks.fget)  # type: ignore[assignment,attr-defined]

    backend.__class__ = Blockless
    with pytest.raises(UsageError, match="gives no hidden states"):
        backend.hidden(Batch.of(clips.forget[:1]), 0.5)


class Rmu(LossMethod):
    """Pushes forget's hidden states to a random vector, and holds retain's (arXiv 2403.03218, equations 1 and 2)."""

    spec = MethodSpec("rmu", "", "", needs={"retain", "reference", "hidden"})
    Options = TrainOptions

    def prepare(self, session: Session) -> None:
        width = session.backend.hidden(Batch.of(session.forget[:1]), 0.5).shape[-1]
        self.control = 5 * nn.functional.normalize(torch.rand(width, generator=session.generator), dim=0)

    def _distance(self, states: Tensor, target: Tensor, batch: Batch) -> Tensor:
        return ((states - target).square().mean(-1) * batch.frame_mask).sum(1) / batch.frames

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        return self._distance(step.backend.hidden(batch, 0.5), self.control, batch)

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        assert step.reference is not None
        return self._distance(step.backend.hidden(batch, 0.5), step.reference.hidden(batch, 0.5), batch)


@pytest.mark.parametrize("method", [Rmu, Scrub])
def test_such_a_method_keeps_the_contract(method: type[LossMethod]) -> None:
    results = methods.run(method, Fixture.load("musicgen", "tiny"))
    assert {result.check: result.message for result in results if result.state == "FAILED"} == {}


def test_hidden_states_that_are_read_must_be_declared() -> None:
    class Undeclared(Rmu):
        spec = MethodSpec("undeclared", "", "", needs={"retain", "reference"})

    results = methods.run(Undeclared, Fixture.load("musicgen", "tiny"))
    faults = {result.check: result.message for result in results if result.state == "FAILED"}
    assert "it reads backend.hidden and reference.hidden, but its spec's needs lack 'hidden'" in faults["needs"]


def test_hidden_states_of_a_clip_do_not_depend_on_the_padding(backend: MusicgenBackend, clips: Clips) -> None:
    short = Clip("short", clips.forget[0].caption, clips.forget[0].codes[:, :5])
    batch = Batch.of([short, clips.forget[1]])
    assert batch.frame_mask.sum(1).tolist() == batch.frames.tolist() == [5, clips.forget[1].codes.shape[-1]]
    alone, together = backend.hidden(Batch.of([short]), 1.0), backend.hidden(batch, 1.0)
    torch.testing.assert_close(together[:1][batch.frame_mask[:1]], alone[0], rtol=1e-4, atol=1e-5)


def test_rmu_moves_hidden_states_towards_its_vector(backend: MusicgenBackend, clips: Clips) -> None:
    batch = Batch.of(clips.forget)
    method = Rmu(options(steps=20, lr=3e-3, select="last", eval_every=20))
    before = backend.hidden(batch, 0.5).detach()
    run(backend, clips, method)
    with torch.no_grad():
        distances = [(states - method.control).square().mean() for states in (before, backend.hidden(batch, 0.5))]
    assert distances[1] < 0.8 * distances[0]


def test_the_last_weights_are_kept_where_select_says_so(backend: MusicgenBackend, clips: Clips) -> None:
    best, last = backend.clone(), backend.clone()
    seen: list[str] = []

    class Noted(Ascent):
        def after_step(self, step: Step) -> None:
            seen.append(module_sha256(step.backend.module))

    # The ascent is too fast: its first snapshots score better.
    settings = {"steps": 12, "lr": 2e-2, "eval_every": 1}
    run(best, clips, Noted(options(**settings)))
    by_score = module_sha256(best.module)
    assert by_score in seen[:-1] or by_score == module_sha256(backend.module)
    seen.clear()
    run(last, clips, Noted(options(**settings, select="last")))
    assert module_sha256(last.module) == seen[-1]


def test_an_inner_method_has_the_spec_of_its_edit(backend: MusicgenBackend, clips: Clips) -> None:
    class Inner(LossMethod):
        def forget_loss(self, step: Step, batch: Batch) -> Tensor:
            assert step.reference is not None
            return step.backend.losses(batch)

    class Outer(EditMethod):
        spec = MethodSpec("outer", "", "", needs={"reference", "retain"})
        Options = TrainOptions

        def edit(self, session: Session) -> None:
            session.train(Inner(self.options))

    lines = [line for line in run(backend, clips, Outer(options())) if "lr" in line]
    assert all({"forget_loss", "retain_loss"} <= line.keys() for line in lines)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_token_cross_entropy_is_the_mean_over_unmasked_tokens(soft: bool, weighted: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=draw)
    codes = torch.randint(0, 5, (2, 3, 4), generator=draw)
    targets = torch.rand(2, 3, 4, 5, generator=draw).softmax(-1) if soft else codes
    mask = torch.rand(2, 3, 4, generator=draw) > 0.3
    weights = torch.rand(2, 3, 4, generator=draw) if weighted else None
    logits[~mask] = torch.nan
    got = token_cross_entropy(logits, targets, mask, weights)
    for n in range(2):
        total, count = 0.0, 0
        for k in range(3):
            for t in range(4):
                if mask[n, k, t]:
                    logprobs = logits[n, k, t].double().log_softmax(-1)
                    entropy = -(targets[n, k, t] * logprobs).sum() if soft else -logprobs[codes[n, k, t]]
                    total += float(entropy) * (float(weights[n, k, t]) if weights is not None else 1.0)
                    count += 1
        assert got[n].item() == pytest.approx(total / count, rel=1e-5)


def test_option_files_are_hashed_and_a_teacher_is_loaded(
    backend: MusicgenBackend, clips: Clips, tmp_path: Path
) -> None:
    class Settings(Options):
        classifier: FilePath | None = None
        teacher: DirectoryPath | None = None

    (tmp_path / "teacher").mkdir()
    backend.save(tmp_path / "teacher")
    (tmp_path / "tags.bin").write_bytes(b"weights")
    assert option_files(Settings()) == {}
    made = Settings.model_validate({"classifier": str(tmp_path / "tags.bin"), "teacher": str(tmp_path / "teacher")})
    before = json.dumps(option_files(made))
    assert sorted(option_files(made)["option_files"]) == ["classifier", "teacher"]
    (tmp_path / "tags.bin").write_bytes(b"others")
    assert json.dumps(option_files(made)) != before

    class Distil(EditMethod):
        spec = MethodSpec("distil", "", "")
        Options = Settings

        def edit(self, session: Session) -> None:
            teacher = session.load_model(made.teacher)  # type: ignore[arg-type]
            assert module_sha256(teacher.module) == module_sha256(session.backend.module)
            assert not any(weight.requires_grad for weight in teacher.module.parameters())

    run(backend, clips, Distil(made))


def test_a_run_is_refused_where_the_model_gives_no_hidden_states(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(MusicgenBackend, "blocks", Backend.blocks)
    (tmp_path / "list.txt").write_text("id:entertainer\n")
    config = ForgetConfig(tracks=tmp_path / "list.txt", out=tmp_path / "run")
    with pytest.raises(UsageError, match="'rmu' needs hidden states, and musicgen gives none"):
        prepare(config, Rmu(options()))
    assert not (tmp_path / "run").exists()
