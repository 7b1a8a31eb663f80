"""A method under test: its options cut to two steps, and runs of the engine on clones of one small model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from encore.api import Backend, Batch, Clip, LossMethod, Method, Session, Step
from encore.errors import EncoreError, Interrupted
from encore.hashing import module_sha256
from encore.ops import native
from encore.signals import StopFlag
from encore.store.run_folder import Checkpoints
from encore.testing.access_spy import AccessSpy, watch_tokens, watched
from encore.testing.core import Skip, raised
from encore.testing.global_state import undisturbed
from encore.testing.side_effects import overheard
from encore.testing.small_model import Fixture
from encore.unlearn.engine import Clips, Engine, FrozenReference

STEPS = 2
QUICK: Mapping[str, Any] = {
    "steps": STEPS, "warmup": 0, "eval_every": STEPS, "stop": "never", "dropout": False, "batch_size": 4,
    "checkpoint_seconds": 1e9,
}  # fmt: skip


class Bench(Engine):
    """An engine that leaves it to the checks to look at the result."""

    def _check_result(self, method: Method, frozen: Mapping[str, str]) -> None:
        return None

    @property
    def reference(self) -> FrozenReference | None:
        return self._reference if isinstance(self._reference, FrozenReference) else None


@dataclass
class Trial:
    """One run of a method.

    Args:
        backend: the model afterwards. weights: hash of its module. frozen: names of frozen parts that changed.
        reference: whether the base that it compared with changed. clips: whose codes changed. error: what it raised.
        watch: what it read and drew. outside: what it wrote or sent. steps: the loop's, in order. skipped: of them,
            those that were not finite.
    """

    backend: Backend
    watch: AccessSpy
    weights: str = ""
    frozen: list[str] = field(default_factory=list)
    reference: bool = False
    clips: list[Clip] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    skipped: int = 0
    error: Exception | None = None

    @property
    def said(self) -> str:
        """What it raised, in one sentence."""
        if isinstance(self.error, EncoreError):
            return self.error.message
        return raised(self.error) if self.error else ""


class MethodSubject:
    """What the checks of a method look at.

    Args:
        target: the class, with its `spec`. fixture: what it is tried on.
    """

    def __init__(self, target: type[Method], fixture: Fixture) -> None:
        self.target, self.fixture = target, fixture
        self._trials: dict[tuple[Any, ...], Trial] = {}
        native.find()  # where it has to be compiled, it is now, and no method is said to have started a compiler

    def undisturbed(self) -> AbstractContextManager[None]:
        return self.fixture.undisturbed()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.target.spec.needs)

    def options(self) -> Any:
        """The defaults, but for a run of two steps: also of what only has `steps` in common with `TrainOptions`."""
        fields = self.target.Options.model_fields
        chosen = {key: value for key, value in QUICK.items() if key in fields}
        for given in (chosen, {"steps": STEPS} if "steps" in fields else {}):
            try:
                return self.target.Options(**given)
            except ValidationError:
                continue
        return self.target.Options()

    # -------------------------------------------------------------------------------------------------------- runs

    def trial(
        self, *, salt: int = 1, twin: int = 0, without: str = "", fixture: Fixture | None = None, tokens: bool = True
    ) -> Trial:
        """A run of the method, once for each set of arguments.

        Args:
            salt: of the shared random generators. twin: for a second run of the same.
            without: "retain" or "holdout": which clips are not there. tokens: False for a backend without them.
        """
        key = (salt, twin, without, tokens)
        if key not in self._trials:
            chosen = self.fixture if tokens else self.fixture.without_tokens()
            self._trials[key] = self._run(chosen, AccessSpy(salt), without)
        return self._trials[key]

    def done(self, **how: Any) -> Trial:
        """A trial that came to its end; the check is skipped where it did not, which another check tells."""
        trial = self.trial(**how)
        if trial.error is not None:
            raise Skip("the method does not run, see 'two steps'")
        return trial

    def _run(self, fixture: Fixture, watch: AccessSpy, without: str) -> Trial:
        trial = Trial(fixture.base.clone(), watch)
        clips = Clips(fixture.clips.forget, fixture.clips.retain, fixture.clips.holdout)
        if without:
            setattr(clips, without, [])
        codes = {clip: clip.codes.clone() for clip in fixture.everything}
        frozen = {name: module_sha256(part) for name, part in fixture.base.frozen().items()}
        base = module_sha256(fixture.base.module)
        with undisturbed(fixture.base), overheard() as outside:
            try:
                engine = Bench(trial.backend, clips, record=lambda line: trial.steps.extend(_step(line)))
                watch_tokens(trial.backend, watch)
                engine.run(watched(self.target, watch)(self.options()))
                trial.skipped = engine.outcome.skipped_steps
                reference = engine.reference
                trial.reference = reference is not None and module_sha256(reference.module) != base
            except Exception as error:
                trial.error = error
            trial.outside = sorted(set(outside))
            trial.frozen = [n for n, part in fixture.base.frozen().items() if module_sha256(part) != frozen[n]]
        trial.weights = module_sha256(trial.backend.module)
        for clip, before in codes.items():
            if not torch.equal(clip.codes, before):
                trial.clips.append(clip)
                clip.codes.copy_(before)
        return trial

    def resumed(self) -> tuple[bool, str]:
        """Whether a run that is stopped after its first step goes on from there, and the weights it ends in."""
        stop, lines = StopFlag(), list[Mapping[str, Any]]()

        def stop_at(line: Mapping[str, Any]) -> None:
            if "lr" in line and line["step"] == 1:
                stop.number = 15

        with tempfile.TemporaryDirectory() as folder, undisturbed(self.fixture.base):
            checkpoints = Checkpoints(Path(folder), "conformance")
            first, again = self.fixture.base.clone(), self.fixture.base.clone()
            try:
                self._engine(first, checkpoints=checkpoints, stop=stop, record=stop_at)
            except Interrupted:
                self._engine(again, checkpoints=checkpoints, record=lines.append)
        return any(line.get("event") == "resumed" for line in lines), module_sha256(again.module)

    def _engine(self, backend: Backend, **how: Any) -> None:
        Bench(backend, self.fixture.clips, **how).run(watched(self.target, AccessSpy(1))(self.options()))

    # ------------------------------------------------------------------------------------------------------- losses

    def prepared(self) -> Prepared:
        """A loss method after `prepare`; the check is skipped for one that edits."""
        if not issubclass(self.target, LossMethod):
            raise Skip("it edits weights, and has no loss a clip")
        engine = Bench(self.fixture.base.clone(), self.fixture.clips)
        method = self.target(self.options())
        session = engine.session(method)
        method.prepare(session)
        return Prepared(method, session)


@dataclass
class Prepared:
    """A loss method that may be asked for losses."""

    method: LossMethod
    session: Session

    def step(self, seed: int = 0) -> Step:
        given = self.session
        generator = torch.Generator().manual_seed(seed)
        return Step(given.backend, given.reference, generator, 0.0, given.holdout_nll, forget=given.forget)

    def ask(self, name: str, clips: Sequence[Clip], *, seed: int = 0) -> tuple[Tensor, bool]:
        """`forget_loss` or `retain_loss` of clips, and whether it drew from the run's generator."""
        step = self.step(seed)
        before = step.generator.get_state()
        losses = getattr(self.method, name)(step, Batch.of(clips, self.session.backend.device, noise_index=1))
        return losses, not torch.equal(before, step.generator.get_state())

    def clips(self, name: str) -> Sequence[Clip]:
        """The clips that a loss is about, each once."""
        chosen = self.session.forget if name == "forget_loss" else self.session.retain
        return list(dict.fromkeys(chosen))

    @property
    def asked(self) -> list[str]:
        """The losses that the engine would ask for."""
        names = ["forget_loss"] if self.method.uses_forget else []
        if "retain" in self.method.spec.needs and self.session.retain:
            names.append("retain_loss")
        return names


def _step(line: Mapping[str, Any]) -> list[int]:
    return [line["step"]] if "lr" in line else []
