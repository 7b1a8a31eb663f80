"""What the four suites share: a check, what it came to, and how a suite is gone through.

A check is a function of a subject (what is checked, with the music it is checked on). It returns, perhaps with a
remark; raises `ContractViolation` with the sentence that names what is wrong; or raises `Skip` with why it can't apply.
Whatever else it raises is a violation as well, and the checks after it go on.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from encore.errors import EncoreError, InputError
from encore.plugins import is_interruption

State = Literal["passed", "FAILED", "skipped"]
Progress = Callable[[str, int, int], None]


class ContractViolation(Exception):
    """What is wrong, in one sentence."""


class Skip(Exception):
    """Why a check can't apply, in one sentence."""


class Unusable(InputError):
    """What a plugin was to be tried on can't be used, so that no check says anything of the plugin."""


def need(held: object, fault: str) -> None:
    """Raise the fault unless the condition holds."""
    if not held:
        raise ContractViolation(fault)


def named(names: Sequence[object]) -> str:
    """ "a", "a and b", "a, b and 3 more"."""
    if len(names) <= 2:
        return " and ".join(map(str, names))
    return f"{names[0]}, {names[1]} and {len(names) - 2} more"


@dataclass(frozen=True)
class CheckResult:
    """What one check came to.

    Args:
        check: its name. contract: the sentence it holds a plugin to.
        state: passed, FAILED or skipped.
        said: the fault, the reason it was skipped, or a remark on what passed; empty where there is none.
        seconds: how long it took.
    """

    check: str
    contract: str
    state: State
    said: str = ""
    seconds: float = 0.0

    @property
    def sentence(self) -> str:
        """For a person: the fault beside what the contract says, the reason, or the contract."""
        if self.state == "FAILED":
            return f"{self.said}; the contract: {self.contract}"
        return (
            f"skipped: {self.said}" if self.state == "skipped" else "; ".join(filter(None, (self.contract, self.said)))
        )


@dataclass(frozen=True)
class Report:
    """All checks of one plugin's method, backend, metric or embedder, in the order they ran.

    Args:
        kind, name: what was checked. source: the distribution and version it came from.
    """

    kind: str
    name: str
    source: str
    outcomes: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.state == "FAILED")


class Subject(Protocol):
    """What a suite is run on."""

    def undisturbed(self) -> AbstractContextManager[None]:
        """Whatever a check does in here to models or global state is undone afterwards."""


SubjectT = TypeVar("SubjectT", bound=Subject)


class Check(NamedTuple, Generic[SubjectT]):
    """One check. Where `first` fails or is skipped, the others have nothing to look at."""

    name: str
    contract: str
    run: Callable[[SubjectT], str | None]
    first: bool


@dataclass
class Suite(Generic[SubjectT]):
    """The checks of one kind, in order; `check` adds one."""

    kind: str
    checks: list[Check[SubjectT]] = field(default_factory=list)

    def check(
        self, name: str, contract: str, *, first: bool = False
    ) -> Callable[[Callable[[SubjectT], str | None]], Callable[[SubjectT], str | None]]:
        """Add a function to the suite. `contract`: what it holds a plugin to, a sentence without its full stop."""

        def add(function: Callable[[SubjectT], str | None]) -> Callable[[SubjectT], str | None]:
            self.checks.append(Check(name, contract, function, first))
            return function

        return add

    def run(
        self,
        subject: SubjectT,
        progress: Progress = lambda name, done, of: None,
        only: Collection[str] | None = None,
    ) -> tuple[CheckResult, ...]:
        """Run every check, none of which can stop the others, but for those marked `first`.

        Args:
            only: names of checks; the others are left out, but for those marked `first`.

        Raises:
            Unusable: what the subject was to be made of can't be used.
        """
        outcomes: list[CheckResult] = []
        missing = ""
        chosen = [check for check in self.checks if only is None or check.first or check.name in only]
        for done, check in enumerate(chosen):
            progress(check.name, done, len(chosen))
            if missing:
                outcomes.append(CheckResult(check.name, check.contract, "skipped", missing))
                continue
            outcomes.append(_outcome(check, subject))
            if check.first and outcomes[-1].state == "FAILED":
                missing = f"there is nothing to check where {check.name!r} fails"
            elif check.first and outcomes[-1].state == "skipped":
                missing = outcomes[-1].said
        progress("", len(chosen), len(chosen))
        return tuple(outcomes)


def _outcome(check: Check[Any], subject: Any) -> CheckResult:
    started = time.monotonic()
    state: State = "passed"
    said: str | None
    try:
        with warnings.catch_warnings(), subject.undisturbed():
            warnings.simplefilter("ignore")
            said = check.run(subject)
    except ContractViolation as fault:
        state, said = "FAILED", str(fault)
    except Skip as reason:
        state, said = "skipped", str(reason)
    except Unusable:
        raise
    except BaseException as error:
        if is_interruption(error):
            raise  # whoever checks was told to stop: that says nothing of the plugin
        state, said = "FAILED", raised(error)
    return CheckResult(check.name, check.contract, state, said or "", time.monotonic() - started)


def raised(error: BaseException) -> str:
    """An exception that nobody expected, in one sentence: what it is and the line of the plugin it came from."""
    text = " ".join((error.message if isinstance(error, EncoreError) else str(error)).split())
    said = f"raised {type(error).__name__}" + (f": {text}" if text else "")
    own = str(Path(__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(own)]
    where = frames[-1] if frames else None
    return f"{said} ({Path(where.filename).name}, line {where.lineno})" if where else said


@contextmanager
def telling(doing: str) -> Iterator[None]:
    """An exception raised in here is told with what was being done."""
    try:
        yield
    except (ContractViolation, Skip):
        raise
    except Exception as error:
        raise ContractViolation(f"{doing} {raised(error)}") from error
