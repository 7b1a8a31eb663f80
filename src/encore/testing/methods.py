"""The checks of a method: its options and losses, and what two steps of the engine (or its edit) do."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from encore.api import Batch, Clip, EditMethod, LossMethod, Method, Session, Step
from encore.errors import EncoreError, Interrupted
from encore.hashing import module_sha256
from encore.ops import native
from encore.settings import describe_options, resolve_options
from encore.store.run_folder import Checkpoints
from encore.testing.core import CheckResult, ContractViolation, Skip, describe, during, listed, need, run_checks
from encore.testing.fixture import Fixture, NoTokens, Subject
from encore.testing.state import RandomState, apart, close, frozen_sha256, need_tensor, seed_shared, side_effects
from encore.unlearn.engine import Engine, FrozenReference

QUICK: Mapping[str, Any] = {
    "steps": 2, "warmup": 0, "eval_every": 2, "stop": "never", "dropout": False, "batch_size": 4,
    "checkpoint_seconds": 1e9,
}  # fmt: skip
FUNCTIONS = ("prepare", "forget_loss", "retain_loss", "penalty", "ready", "edit")


def run(target: type[Method], fixture: Fixture, **how: Any) -> tuple[CheckResult, ...]:
    """Check a method on one small model; see `run_checks`."""
    return run_checks(CHECKS, MethodSubject(target, fixture), **how)


class Trial(Engine):
    """One run of a method on a clone of the base. Each of its functions gets shared generators of a known state.

    Args:
        fixture: the base and clips.
        salt: of that state.
        without: the clips that are left out.
        stops: stop after the first step.
        checkpoints: where the loop's state is kept.

    Attributes:
        moved: function of the method -> the shared generators that it moved.
        effects: what the method changed beside the model.
        steps: of the loop.
        error: what it raised.
    """

    def __init__(
        self, fixture: Fixture, *, salt: int, without: str, stops: bool = False, checkpoints: Checkpoints | None = None
    ) -> None:
        clips = replace(fixture.clips, **{without: []} if without in vars(fixture.clips) else {})
        super().__init__(fixture.base.clone(), clips, checkpoints=checkpoints, record=self._record_line)
        self.fixture, self.salt, self.stops, self._calls = fixture, salt, stops, itertools.count()
        self.moved, self.effects, self.steps = dict[str, str](), list[str](), list[int]()
        self.error: Exception | None = None

    def apply(self, make: Callable[[], Method]) -> None:
        """Run the method that `make` returns, and note what it changes."""
        base, clips = self.fixture.base, self.fixture.all_clips
        frozen, digest, codes = frozen_sha256(base), module_sha256(base.module), [clip.codes.clone() for clip in clips]
        with self.fixture.undisturbed(), side_effects() as effects:
            try:
                self.run(make())
            except Interrupted:
                if not self.stops:
                    raise
            except Exception as error:
                self.error = error
            after = frozen_sha256(base)
            self.effects = [f"changes the frozen {name}" for name in frozen if frozen[name] != after[name]]
            if isinstance(self._reference, FrozenReference) and module_sha256(self._reference.module) != digest:
                self.effects.append("changes the reference model, which must stay the base")
            changed = [clip.track for clip, before in zip(clips, codes, strict=True) if not clip.codes.equal(before)]
            if changed:
                self.effects.append(f"writes into the codes of {len(changed)} clips: {listed(changed)}")
            self.effects += sorted(set(effects))

    def _record_line(self, line: Mapping[str, Any]) -> None:
        if "lr" in line:
            self.steps.append(line["step"])
            self.stop.number = 15 if self.stops else None

    def session(self, method: Method) -> Session:
        self._watch(method)
        return super().session(method)

    def train(self, method: LossMethod) -> None:
        self._watch(method)  # an edit may train with an inner method
        shared = RandomState()
        super().train(method)
        shared.restore()

    def _watch(self, method: Method) -> None:
        cls, base = type(method), LossMethod if isinstance(method, LossMethod) else EditMethod

        def watched(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any) -> Any:
                before, known = RandomState(), seed_shared(1000 * self.salt + next(self._calls))
                try:
                    return function(*given)
                finally:
                    if known.moved():
                        self.moved[function.__name__] = known.moved()
                    before.restore()

            return call

        if not hasattr(cls, "is_watched"):
            functions = {name: getattr(cls, name) for name in FUNCTIONS if hasattr(cls, name)}
            chosen = {name: watched(call) for name, call in functions.items() if call is not getattr(base, name)}
            method.__class__ = type(cls.__name__, (cls,), chosen | {"is_watched": True})

    def _check_result(self, method: Method, frozen: Mapping[str, str]) -> None:
        return None  # the checks do

    @cached_property
    def weights(self) -> str:
        """Hash of the model's weights afterwards."""
        return module_sha256(self.backend.module)

    @property
    def message(self) -> str:
        """What it raised, in one sentence."""
        return self.error.message if isinstance(self.error, EncoreError) else describe(self.error or Exception())


class MethodSubject(Subject):
    """A method with its trials."""

    def __init__(self, target: type[Method], fixture: Fixture) -> None:
        super().__init__(target, fixture)
        self._trials: dict[Any, Trial] = {}
        native.find()  # compiles it where needed, before side effects are watched

    def options(self) -> Any:
        """The defaults, for a run of two steps where there are steps."""
        fields = self.target.Options.model_fields
        for names in (QUICK, ["steps"]):
            try:
                return self.target.Options(**{name: QUICK[name] for name in names if name in fields})
            except ValidationError:
                continue
        return self.target.Options()

    def trial(
        self, *, salt: int = 1, rerun: int = 0, without: str = "", extra: str = "", tokens: bool = True, **how: Any
    ) -> Trial:
        """A run of the method; one run serves all calls with the same arguments.

        Args:
            salt: see `Trial`.
            rerun: number of another run of the same.
            without: one of its needs that it is not given.
            extra: what it is given beside its needs.
            tokens: False for a backend without them.
            **how: see `Trial`.
        """
        key = (salt, rerun, without, extra, tokens, *how.items())

        def make() -> Method:
            method: Method = self.target(self.options())
            spec = replace(method.spec, needs=(self.needs | {extra}) - {without, ""})
            method.__class__ = type("Trial", (self.target,), {"spec": spec})
            return method

        if key not in self._trials:
            fixture = self.fixture if tokens else self.fixture.without_tokens()
            self._trials[key] = Trial(fixture, salt=salt, without=without, **how)
            self._trials[key].apply(make)
        return self._trials[key]

    def finished(self, **how: Any) -> Trial:
        """A trial without error; skip the check where there is one, which another check reports."""
        if self.trial(**how).error is not None:
            raise Skip("the method does not run, see 'two_steps'")
        return self.trial(**how)


class Losses:
    """The losses of a method after `prepare`, on a clone of the base.

    Attributes:
        clips: loss -> its clips, each once.
        random: the losses that drew from the run's generator.
    """

    def __init__(self, subject: MethodSubject) -> None:
        if not issubclass(subject.target, LossMethod):
            raise Skip("it edits weights, and has no loss per clip")
        self.method = subject.target(subject.options())
        self.session = Engine(subject.fixture.base.clone(), subject.fixture.clips).session(self.method)
        self.method.prepare(self.session)
        self.random: set[str] = set()
        self.clips = {"forget_loss": list(self.session.forget)} if self.method.uses_forget else {}
        if "retain" in subject.needs and self.session.retain:
            self.clips["retain_loss"] = list(dict.fromkeys(self.session.retain))

    def step(self) -> Step:
        given, generator = self.session, torch.Generator().manual_seed(0)
        return Step(given.backend, given.reference, generator, 0.0, given.holdout_nll, forget=given.forget)

    def __call__(self, name: str, clips: Sequence[Clip]) -> Tensor:
        step = self.step()
        before = step.generator.get_state()
        losses = getattr(self.method, name)(step, Batch.of(clips, step.backend.device, noise_index=1))
        if not torch.equal(before, step.generator.get_state()):
            self.random.add(name)
        return losses

    @property
    def remark(self) -> str:
        """A batch that is cut differently draws differently."""
        return f"{listed(sorted(self.random))} is random: batches of one size were compared" if self.random else ""


def check_options(subject: MethodSubject) -> None:
    """Options refuses unknown names, has valid defaults, and describes each option."""
    cls = subject.target.Options
    try:
        defaults = cls()
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ContractViolation(f"Options() has no defaults: {fault['loc']}: {fault['msg']}") from error
    try:
        cls.model_validate({"no_such_option": 1})
    except ValidationError:
        pass
    else:
        raise ContractViolation('an unknown option is accepted: Options lacks extra="forbid"')
    silent = [info.name for info in describe_options(cls) if not info.description]
    need(not silent, f"{listed(silent)} has no description")
    for name, value in defaults.model_dump().items():
        if value is not None and not isinstance(value, (list, dict, tuple)):
            with during(f"-o {name}={value}, the default,"):
                parsed = getattr(resolve_options(cls, environ={}, assignments=[f"{name}={value}"]).options, name)
            need(parsed == value, f"-o {name}={value} becomes {parsed!r}")


def check_losses(subject: MethodSubject) -> None:
    """forget_loss and retain_loss give one finite loss per clip, [N], with a gradient; penalty a scalar."""
    losses = Losses(subject)
    for name, clips in losses.clips.items():
        need_tensor(name, losses(name, clips), (len(clips),), gradient=True)
    penalty = losses.method.penalty(losses.step())
    if penalty is not None:
        need_tensor("penalty", penalty, ())


def check_independence(subject: MethodSubject) -> str:
    """The loss of a clip depends on that clip, not on the others of its batch."""
    losses = Losses(subject)
    for name, clips in losses.clips.items():
        first, second, third = [clip for clip in clips if clip.codes.shape == clips[0].codes.shape][:3]
        short = min(clips, key=lambda clip: clip.codes.shape[-1])
        compared = [("a clip", "beside one clip", [first, third], second)]
        compared += [("a clip", "alone", [first], second), ("a short clip", "alone", [short], first)]
        for what, where, batch, other in compared:
            if len(batch) == 2 or name not in losses.random:
                a, b = losses(name, batch)[0], losses(name, [batch[0], other])[0]
                need(close(a, b), f"{name} of {what} is {a:.5f} {where} and {b:.5f} beside another")
    return losses.remark


def check_micro_batches(subject: MethodSubject) -> str:
    """Clips one at a time give the gradient that they give together."""
    losses = Losses(subject)
    weights = [weight for weight in losses.session.backend.module.parameters() if weight.requires_grad]

    def gradients(name: str, clips: Sequence[Clip]) -> Sequence[Tensor]:
        return torch.autograd.grad(losses(name, clips).sum(), weights, allow_unused=True, materialize_grads=True)

    for name, clips in losses.clips.items():
        together = gradients(name, clips)
        if name in losses.random:
            continue
        for whole, *parts in zip(together, *(gradients(name, [clip]) for clip in clips), strict=True):
            scale = max(float(part.abs().max()) for part in parts)
            difference = apart(torch.stack(parts).sum(0), whole)
            need(
                difference <= 1e-3 * scale + 1e-6,
                f"the gradient of {name} over {len(clips)} clips together is not the sum of theirs one at a time: "
                f"they differ by {difference / max(scale, 1e-12):.0%}",
            )
    return losses.remark


def check_two_steps(subject: MethodSubject) -> None:
    """It runs, changes the model's weights, and leaves it finite, with its parameters, in evaluation mode."""
    trial, base = subject.trial(), subject.fixture.base.module
    need(trial.error is None, f"it does not run: {trial.message}")
    skipped, module = trial.outcome.skipped_steps, trial.backend.module
    need(not skipped, f"{skipped} steps were skipped, because loss or gradient was not finite")
    odd = [name for name, weight in module.state_dict().items() if not weight.isfinite().all()]
    need(not odd, f"it leaves weights that are not finite in {listed(odd)}")
    after, before = ({n: (v.shape, v.dtype) for n, v in m.state_dict().items()} for m in (module, base))
    added, removed = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    need(not added, f"it adds parameters: {listed(added)}")
    need(not removed, f"it removes parameters: {listed(removed)}")
    changed = [name for name in after if after[name] != before[name]]
    need(not changed, f"it changes the shape or type of {listed(changed)}")
    need(not any(part.training for part in module.modules()), "it leaves the model in training mode")
    trainable = {name for name, weight in base.named_parameters() if weight.requires_grad}
    fixed = [name for name, weight in module.named_parameters() if name in trainable and not weight.requires_grad]
    need(not fixed, f"it leaves parameters that require no gradient: {listed(fixed)}")
    if trial.weights == module_sha256(base):
        need(not subject.fixture.memorised, "it changes no weight")
        raise Skip("the model has not memorised the forget clips, so a method may leave it as it is")


def check_side_effects(subject: MethodSubject) -> None:
    """It changes no frozen part, reference or clip, writes no file, starts no process, opens no connection."""
    effects = subject.trial().effects
    need(not effects, f"it {listed(effects)}")


def check_determinism(subject: MethodSubject) -> None:
    """Two runs from one seed end in the same weights, and no random numbers come from shared generators."""
    moved = [f"{name} draws from, or seeds, {whose}" for name, whose in subject.trial().moved.items()]
    need(not moved, f"{listed(moved)} shared random generator; step.generator is there for that")
    weights = subject.finished().weights
    need(weights == subject.finished(rerun=1).weights, "two runs from one seed end in different weights")
    need(weights == subject.finished(salt=2).weights, "the result changes with the shared random generators")


def check_needs(subject: MethodSubject) -> str | None:
    """It runs without what its spec's needs lack, and not the same without what they name."""
    for name in sorted({"reference", "fisher"} - subject.needs):
        helps = subject.trial().error is not None and subject.trial(extra=name).error is None
        need(not helps, f"it runs only with the {name}; its spec's needs lack {name!r}")
    weights = subject.finished().weights
    for name in sorted({"retain", "holdout"} - subject.needs):
        trial = subject.trial(without=name)
        fault = f"without {name} clips it does not run: {trial.message}; its spec's needs lack {name!r}"
        need(trial.error is None, fault)
    trials = {name: subject.trial(without=name) for name in sorted(subject.needs - {"logits"})}
    idle = [name for name, trial in trials.items() if trial.error is None and trial.weights == weights]
    latent = subject.trial(tokens=False)
    if "logits" in subject.needs:
        idle += ["logits"] if latent.error is None else []
    need(not idle, f"its spec needs {' and '.join(idle)}, which it does not use at its default options")
    if "logits" in subject.needs or latent.error is None:
        return None
    need(not isinstance(latent.error, NoTokens), f"{latent.message}; its spec's needs lack 'logits'")
    refused = isinstance(latent.error, EncoreError)
    need(refused, f"it does not run on a backend without tokens, and does not refuse it: {latent.message}")
    return f"refused: {latent.message}"


def check_resume(subject: MethodSubject) -> None:
    """A run that is stopped and resumed ends in the weights of one that was not."""
    trial = subject.finished()
    if len(trial.steps) < 2:
        raise Skip("it has no steps to stop between")
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), "conformance")
        subject.trial(checkpoints=checkpoints, stops=True)
        resumed = subject.trial(checkpoints=checkpoints)
    need(resumed.steps == trial.steps[1:], f"resumed after its first step, it runs the steps {resumed.steps}")
    reason = "prepare is not deterministic, or it keeps a state between steps that no checkpoint holds"
    need(resumed.weights == trial.weights, f"a run that was stopped and resumed ends in other weights: {reason}")


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
