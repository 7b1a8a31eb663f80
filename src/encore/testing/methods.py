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
from encore.testing.fixture import Fixture, Subject
from encore.testing.state import RandomState, apart, close, frozen_sha256, need_tensor, seed_shared, side_effects
from encore.unlearn.engine import Engine
from encore.unlearn.reference import FrozenReference

QUICK: Mapping[str, Any] = {
    "steps": 2, "warmup": 0, "eval_every": 2, "stop": "never", "dropout": False, "batch_size": 4,
    "checkpoint_seconds": 1e9,
}  # fmt: skip
FUNCTIONS = ("prepare", "forget_loss", "retain_loss", "penalty", "ready", "after_step", "finish", "edit")
FIELDS = frozenset({"retain", "reference", "holdout", "holdout_nll", "fisher", "train"})  # whose reading is noted
TOKENS = ("logits", "token_mask", "token_logprobs")


def run(target: type[Method], fixture: Fixture, **how: Any) -> tuple[CheckResult, ...]:
    """Check a method on one small model; see `run_checks`."""
    return run_checks(CHECKS, MethodSubject(target, fixture), **how)


class Trial(Engine):
    """One run of a method on a clone of the base, with an access spy.

    Each function of the method starts from a known state of the shared random generators. What the method reads is
    noted, also what an inner method of an edit reads. What the engine reads, or `backend.losses`, is not.

    Args:
        fixture: the base and clips.
        salt: of that state.
        without: the clips that are left out.
        stops: stop after the first step.
        checkpoints: where the loop's state is kept.

    Attributes:
        reads: "step.reference", "session.fisher", "reference.nll", "backend.logits" …
        moved: function of the method -> the shared generators that it moved.
        effects: kind of effect -> what the method changed beside the model.
        steps: of the loop.
        error: what it raised.
    """

    def __init__(
        self, fixture: Fixture, *, salt: int, without: str, stops: bool = False, checkpoints: Checkpoints | None = None
    ) -> None:
        clips = replace(fixture.clips, **{without: []} if without else {})
        super().__init__(fixture.base.clone(), clips, checkpoints=checkpoints, record=self._record_line)
        self.fixture, self.salt, self.stops, self._calls = fixture, salt, stops, itertools.count()
        self.reads, self.moved, self.steps = set[str](), dict[str, str](), list[int]()
        self.effects: dict[str, list[str]] = {}
        self.error: Exception | None = None
        self._spying = False

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
            changed = [clip.track for clip, before in zip(clips, codes, strict=True) if not clip.codes.equal(before)]
            reference = isinstance(self._reference, FrozenReference) and module_sha256(self._reference.module) != digest
            self.effects = {
                "frozen parts": [f"changes the frozen {name}" for name in frozen if frozen[name] != after[name]],
                "reference": ["changes the reference model, which must stay the base"] * reference,
                "clips": [f"writes into the codes of {len(changed)} clips: {listed(changed)}"] if changed else [],
                "files": sorted(set(effects)),
            }

    def _record_line(self, line: Mapping[str, Any]) -> None:
        if "lr" in line:
            self.steps.append(line["step"])
            self.stop.number = 15 if self.stops else None

    def session(self, method: Method) -> Session:
        self._watch(method)
        session = super().session(method)
        for owner, label, names in (
            (self.backend, "backend", (*TOKENS, "generate", "hidden", "predictions")),
            (self._reference, "reference", ("nll", "logits", "hidden")),
        ):
            for name in names if owner is not None else ():
                setattr(owner, name, self._spy(getattr(owner, name), note=f"{label}.{name}"))
        setattr(self.backend, "losses", self._spy(self.backend.losses, on=False))  # noqa: B010
        return session

    def train(self, method: LossMethod) -> None:
        self._watch(method)  # an edit may train with an inner method
        shared = RandomState()
        self._spy(super().train, on=False)(method)
        shared.restore()

    def _note(self, name: str) -> None:
        if self._spying:
            self.reads.add(name)

    def _spy(self, function: Callable[..., Any], *, note: str = "", on: bool | None = None) -> Callable[..., Any]:
        """The function, whose calls are noted; while it runs, the spy is on, off or (None) as before."""

        def call(*given: Any, **settings: Any) -> Any:
            if note:
                self._note(note)
            before, self._spying = self._spying, self._spying if on is None else on
            try:
                return function(*given, **settings)
            finally:
                self._spying = before

        return call

    def _watch(self, method: Method) -> None:
        cls, base = type(method), LossMethod if isinstance(method, LossMethod) else EditMethod

        def watched(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(target: Method, given: Step | Session, *rest: Any) -> Any:
                before, known = RandomState(), seed_shared(1000 * self.salt + next(self._calls))
                if type(given) in (Step, Session):  # it stays spied, for a method may keep it
                    object.__setattr__(given, "__class__", _spied(type(given), self._note))
                try:
                    return self._spy(function, on=True)(target, given, *rest)
                finally:
                    if known.moved():
                        self.moved[function.__name__] = known.moved()
                    before.restore()

            return call

        if not hasattr(cls, "is_watched"):
            names = [n for n in FUNCTIONS if hasattr(base, n) and getattr(cls, n) is not getattr(base, n)]
            functions = {name: watched(getattr(cls, name)) for name in names}
            method.__class__ = type(cls.__name__, (cls,), functions | {"is_watched": True})

    def _check_result(self, *_: object) -> None:
        return None  # the checks do

    @cached_property
    def weights(self) -> str:
        """Hash of the model's weights afterwards."""
        return module_sha256(self.backend.module)

    @property
    def message(self) -> str:
        """What it raised, in one sentence."""
        return self.error.message if isinstance(self.error, EncoreError) else describe(self.error or Exception())


def _spied(cls: type, note: Callable[[str], None]) -> type:
    """A subclass of `Step` or `Session` that notes which of `FIELDS` are read."""

    def read(self: Any, name: str) -> Any:
        if name in FIELDS:
            note(f"{'step' if issubclass(cls, Step) else 'session'}.{name}")
        return object.__getattribute__(self, name)

    return type(cls.__name__, (cls,), {"__getattribute__": read})


class MethodSubject(Subject):
    """A method with its trials."""

    def __init__(self, target: type[Method], fixture: Fixture) -> None:
        super().__init__(target, fixture)
        if "predictions" in self.needs:
            self.fixture = fixture.without_tokens()
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

    def trial(self, *, salt: int = 1, rerun: int = 0, without: str = "", tokens: bool = True, **how: Any) -> Trial:
        """A run of the method; one run serves all calls with the same arguments.

        Args:
            salt: see `Trial`.
            rerun: number of another run of the same.
            without: "retain" or "holdout", the clips that it is not given.
            tokens: False for a backend without them.
            **how: see `Trial`.
        """
        key = (salt, rerun, without, tokens, *how.items())
        if key not in self._trials:
            fixture = self.fixture if tokens else self.fixture.without_tokens()
            self._trials[key] = Trial(fixture, salt=salt, without=without, **how)
            self._trials[key].apply(lambda: self.target(self.options()))
        return self._trials[key]

    def finished(self, **how: Any) -> Trial:
        """A trial without error; skip the check where there is one, which another check reports."""
        if self.trial(**how).error is not None:
            raise Skip("the method does not run, see 'two_steps'")
        return self.trial(**how)

    def need_no_effects(self, kind: str) -> None:
        """Raise the fault where the method has changed something of that kind."""
        effects = self.trial().effects[kind]
        need(not effects, f"it {listed(effects)}")


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
        return Step(
            given.backend, given.reference, generator, 0.0, given.holdout_nll, forget=given.forget,
            retain=self.clips.get("retain_loss", ()),
        )  # fmt: skip

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
                need(a.ndim == b.ndim == 0, f"{name} has no loss per clip, see the check 'losses'")
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
    """It runs, changes the weights of the model, and leaves them finite."""
    trial = subject.trial()
    need(trial.error is None, f"it does not run: {trial.message}")
    skipped, module = trial.outcome.skipped_steps, trial.backend.module
    need(not skipped, f"{skipped} steps were skipped, because loss or gradient was not finite")
    odd = [name for name, weight in module.state_dict().items() if not weight.isfinite().all()]
    need(not odd, f"it leaves weights that are not finite in {listed(odd)}")
    if trial.weights == module_sha256(subject.fixture.base.module):
        need(not subject.fixture.memorised, "it changes no weight")
        raise Skip("the model has not memorised the forget clips, so a method may leave it as it is")


def check_model(subject: MethodSubject) -> None:
    """The model keeps its parameters, their names, shapes and types; it is in evaluation mode again."""
    module, base = subject.finished().backend.module, subject.fixture.base.module
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


def check_frozen_parts(subject: MethodSubject) -> None:
    """Codec and text encoder keep their weights, bit for bit."""
    subject.need_no_effects("frozen parts")


def check_reference(subject: MethodSubject) -> None:
    """The base model that it compares with keeps its weights, bit for bit."""
    if "reference" not in subject.needs:
        raise Skip("it does not need the reference")
    subject.need_no_effects("reference")


def check_clips(subject: MethodSubject) -> None:
    """The codes of the clips that it is given are not changed."""
    subject.need_no_effects("clips")


def check_files(subject: MethodSubject) -> None:
    """It writes no file, starts no process and opens no connection."""
    subject.need_no_effects("files")


def check_determinism(subject: MethodSubject) -> None:
    """Two runs from one seed end in the same weights, bit for bit."""
    first = subject.finished().weights
    # The run with other shared generators, which another check needs, comes first: equal weights spare a third run.
    same = first == subject.finished(salt=2).weights
    need(same or first == subject.finished(rerun=1).weights, "two runs from one seed end in different weights")


def check_random_numbers(subject: MethodSubject) -> None:
    """All random numbers come from the generator that it is given, none from shared generators."""
    moved = [f"{name} draws from, or seeds, {whose}" for name, whose in subject.trial().moved.items()]
    need(not moved, f"{listed(moved)} shared random generator; step.generator is there for that")
    same = subject.finished().weights == subject.finished(salt=2).weights
    need(same, "the result changes with the state of the shared random generators")


def check_needs(subject: MethodSubject) -> None:
    """What it reads is in its spec's needs, and what is in needs it reads."""
    reads = subject.trial().reads
    for name in ("reference", "fisher", "hidden", "predictions"):
        seen = sorted(read for read in reads if read.endswith(f".{name}"))
        declared = subject.needs & {name, f"{name}_nll"}
        need(not seen or declared, f"it reads {listed(seen)}, but its spec's needs lack {name!r}")
    subject.finished()
    trains = issubclass(subject.target, LossMethod) or "session.train" in reads
    used = {
        "reference": reads & {"reference.nll", "reference.logits", "reference.hidden"},
        "reference_nll": reads & {"reference.nll"},
        "fisher": reads & {"session.fisher"},
        "logits": reads & {*(f"backend.{name}" for name in (*TOKENS, "generate")), "reference.logits"},
        "hidden": reads & {"backend.hidden", "reference.hidden"},
        "holdout": reads & {"session.holdout", "session.holdout_nll", "step.holdout_nll"},
        "retain": trains or reads & {"session.retain"},
    }
    idle = sorted(name for name in subject.needs & used.keys() if not used[name])
    need(not idle, f"its spec needs {' and '.join(idle)}, which it does not read at its default options")


def check_without_retain(subject: MethodSubject) -> None:
    """Where its spec does not need retain, it runs without such clips."""
    _need_run_without(subject, "retain")


def check_without_holdout(subject: MethodSubject) -> None:
    """Where its spec does not need holdout, it runs without such clips."""
    _need_run_without(subject, "holdout")


def _need_run_without(subject: MethodSubject, name: str) -> None:
    if name in subject.needs:
        raise Skip(f"it needs {name}")
    subject.finished()
    trial = subject.trial(without=name)
    reads = sorted(read for read in trial.reads if read.partition(".")[2].removesuffix("_nll") == name)
    where = f"it reads {' and '.join(reads)}, and " if reads else ""
    fault = f"{where}without {name} clips it does not run: {trial.message}; its spec's needs lack {name!r}"
    need(trial.error is None, fault)


def check_without_tokens(subject: MethodSubject) -> str | None:
    """On a backend without tokens it runs, or refuses with a clear error, or its spec needs logits."""
    if subject.needs & {"logits", "hidden"}:
        raise Skip("it needs logits or hidden: Encore refuses a backend without them before the method is run")
    subject.finished()
    trial = subject.trial(tokens=False)
    if trial.error is None:
        return None
    reads = sorted(read for read in trial.reads if read.startswith("backend.") or read == "reference.logits")
    need(not reads, f"it reads {listed(reads)}, which a backend without tokens lacks; its spec's needs lack 'logits'")
    need(isinstance(trial.error, EncoreError), f"it does not run on a backend without tokens: {trial.message}")
    return f"refused: {trial.message}"


def check_save(subject: MethodSubject) -> None:
    """The model that it leaves is saved and loaded with the same weights."""
    trial = subject.finished()
    with tempfile.TemporaryDirectory() as folder:
        with during("the model that it leaves can't be saved and loaded: the backend"):
            trial.backend.save(Path(folder))
            loaded = type(subject.fixture.base).load(folder, offline=True)
        same = module_sha256(loaded.module) == trial.weights
        need(same, "saved and loaded, the model that it leaves has other weights")


def check_resume(subject: MethodSubject) -> None:
    """A run that is stopped and resumed ends in the weights of one that was not."""
    trial = subject.finished()
    if len(trial.steps) < 2:
        raise Skip("it has no steps to stop between")
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), "conformance")
        subject.trial(checkpoints=checkpoints, stops=True)
        resumed = subject.trial(checkpoints=checkpoints)
    need(resumed.error is None, f"a run that was stopped can't be resumed: {resumed.message}")
    need(resumed.steps == trial.steps[1:], f"resumed after its first step, it runs the steps {resumed.steps}")
    reason = "prepare is not deterministic, or it keeps a state between steps that no checkpoint holds"
    need(resumed.weights == trial.weights, f"a run that was stopped and resumed ends in other weights: {reason}")


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
