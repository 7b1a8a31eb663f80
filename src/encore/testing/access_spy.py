"""A method that is watched: what it reads of what it is given, and whose random numbers it draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from encore.api import Batch, EditMethod, LossMethod, Method, Reference, Session, Step
from encore.testing.global_state import Globals, disturb

GIVEN = frozenset({"retain", "reference", "holdout", "holdout_nll"})  # of a step or session, in specs' needs
TOKENS = ("logits", "token_mask", "token_logprobs")
WATCHED = "_is_watched"


@dataclass
class AccessSpy:
    """What was seen.

    Args:
        salt: what the shared random generators are set to before each call of the method, so that two runs with
            different salts differ where the method draws from them.
        read: "step.reference", "session.fisher", "reference.nll", … drew: call -> whose shared generator it moved.
    """

    salt: int = 0
    read: set[str] = field(default_factory=set)
    drew: dict[str, str] = field(default_factory=dict)
    calls: int = 0
    losses: int = 0  # how many calls of backend.losses are under way: what it reads of tokens is its own affair

    def call(self, name: str, function: Callable[[], Any]) -> Any:
        """Run one of the method's functions on shared generators of a known state."""
        self.calls += 1
        before = Globals()
        disturb(1000 * self.salt + self.calls)
        known = Globals()
        try:
            return function()
        finally:
            moved = known.moved()
            if moved:
                self.drew[name] = moved
            before.restore()

    def saw(self, where: str, name: str) -> None:
        self.read.add(f"{where}.{name}")

    def reads(self, name: str) -> bool:
        """Whether anything of that name was read, from wherever."""
        return any(seen.rpartition(".")[2] == name for seen in self.read)


class _Watched:
    """Shared by the two below: reading one of `GIVEN` is noted."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name in GIVEN or name in ("fisher", "train"):
            watch: AccessSpy | None = super().__getattribute__("__dict__").get("_watch")
            if watch is not None:
                watch.saw("step" if isinstance(self, Step) else "session", name)
        return value


class _WatchedStep(_Watched, Step):
    pass


class _WatchedSession(_Watched, Session):
    pass


class _WatchedReference(Reference):
    def __init__(self, inner: Reference, watch: AccessSpy) -> None:
        self._inner, self._watch = inner, watch

    def nll(self, batch: Batch) -> Tensor:
        self._watch.saw("reference", "nll")
        return self._inner.nll(batch)

    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        self._watch.saw("reference", "logits")
        return self._inner.logits(batch, unconditional=unconditional)


def _seen(given: Any, kind: type[Any], watch: AccessSpy) -> Any:
    """A step or session as a watched one."""
    values = {one.name: vars(given)[one.name] for one in fields(given)}  # what is watched already reads nothing here
    if values["reference"] is not None:
        values["reference"] = _WatchedReference(values["reference"], watch)
    made = kind(**values)
    object.__setattr__(made, "_watch", watch)
    return made


def watched(target: type[Method], watch: AccessSpy) -> type[Method]:
    """A subclass of a method that notes what it reads; it does what the method does.

    A method that is passed to `session.train` is watched in its turn: what an edit's inner losses read, the edit reads.
    The loop itself runs unwatched: it seeds the shared generators on purpose, which is not the method's doing.
    """
    made: dict[str, Any] = {"spec": target.spec, WATCHED: True}

    def enter(session: Session) -> Any:
        seen = _seen(session, _WatchedSession, watch)
        run_loop = session.run_loop

        def train(method: LossMethod) -> None:
            shared = Globals()
            if not getattr(type(method), WATCHED, False):
                setattr(method, "__class__", watched(type(method), watch))  # noqa: B010  the very object: an edit may read its state later
            run_loop(method)
            shared.restore()

        object.__setattr__(seen, "run_loop", train)
        return seen

    if issubclass(target, LossMethod):
        own = target

        def prepare(self: LossMethod, session: Session) -> None:
            seen = enter(session)
            watch.call("prepare", lambda: own.prepare(self, seen))
            kept = vars(seen)
            for name in ("retain", "masks", "lr", "target_nll", "chosen"):  # what the engine takes over
                setattr(session, name, kept[name])

        made["prepare"] = prepare
        for name in ("forget_loss", "retain_loss"):
            if name == "retain_loss" or own.forget_loss is not LossMethod.forget_loss:
                made[name] = _loss(getattr(own, name), name, watch)
        if own.ready is not LossMethod.ready:

            def ready(self: LossMethod, step: Step) -> bool:
                return watch.call("ready", lambda: own.ready(self, _seen(step, _WatchedStep, watch)))

            made["ready"] = ready
        if own.penalty is not LossMethod.penalty:

            def penalty(self: LossMethod, step: Step) -> Tensor | None:
                return watch.call("penalty", lambda: own.penalty(self, _seen(step, _WatchedStep, watch)))

            made["penalty"] = penalty
    elif issubclass(target, EditMethod):
        edits = target

        def edit(self: EditMethod, session: Session) -> None:
            watch.call("edit", lambda: edits.edit(self, enter(session)))

        made["edit"] = edit
    return type(f"Watched{target.__name__}", (target,), made)


def _loss(function: Callable[[Any, Step, Batch], Tensor], name: str, watch: AccessSpy) -> Callable[..., Tensor]:
    def loss(self: LossMethod, step: Step, batch: Batch) -> Tensor:
        return watch.call(name, lambda: function(self, _seen(step, _WatchedStep, watch), batch))

    return loss


def watch_tokens(backend: Any, watch: AccessSpy) -> None:
    """Note what is asked of a backend's tokens, by whoever is not its own `losses`."""

    def within(function: Callable[..., Any]) -> Callable[..., Any]:
        def losses(*given: Any, **named: Any) -> Any:
            watch.losses += 1
            try:
                return function(*given, **named)
            finally:
                watch.losses -= 1

        return losses

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*given: Any, **named: Any) -> Any:
            if not watch.losses:
                watch.saw("backend", name)
            return function(*given, **named)

        return ask

    for name in TOKENS:
        setattr(backend, name, noted(name, getattr(backend, name)))
    backend.losses = within(backend.losses)
