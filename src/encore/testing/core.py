"""What the checks of all kinds share.

A check is a function `check_NAME` of a subject: the plugin, with the clips it is tried on. The first line of its
docstring is the contract. It returns None or a remark, or raises `ContractViolation` with the fault, or `Skip` with the
reason why it does not apply. Any other exception is a fault too.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from encore.errors import EncoreError, InputError
from encore.plugins import is_interruption

Check = Callable[[Any], str | None]
Progress = Callable[[str, int, int], None]
State = Literal["passed", "FAILED", "skipped"]


class ContractViolation(Exception):
    """The fault, in one sentence."""


class Skip(Exception):
    """Why a check does not apply, in one sentence."""


class Unusable(InputError):
    """The model that a backend is tried on can't be loaded, which is no fault of the backend."""


def need(condition: object, fault: str) -> None:
    """Raise the fault unless the condition holds."""
    if not condition:
        raise ContractViolation(fault)


def listed(names: Sequence[object]) -> str:
    """ "a", "a and b", "a, b and 3 more"."""
    if len(names) <= 2:
        return " and ".join(map(str, names))
    return f"{names[0]}, {names[1]} and {len(names) - 2} more"


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Args:
        check: its name.
        contract: the sentence that a plugin must keep.
        state: passed, FAILED or skipped.
        message: the fault, the reason for skipping, or a remark; may be empty.
        seconds: how long it took.
    """

    check: str
    contract: str
    state: State
    message: str = ""
    seconds: float = 0.0

    @property
    def sentence(self) -> str:
        """The fault and the contract, or the reason for skipping, or the contract and the remark."""
        if self.state == "FAILED":
            return f"{self.message}; the contract: {self.contract}"
        if self.state == "skipped":
            return f"skipped: {self.message}"
        return f"{self.contract}; {self.message}" if self.message else self.contract


@dataclass(frozen=True)
class Report:
    """The results of one plugin, in the order of the checks.

    Args:
        kind: method, backend, metric or embedder.
        name: as it is registered.
        source: distribution and version.
        results: one per check.
    """

    kind: str
    name: str
    source: str
    results: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        return tuple(result for result in self.results if result.state == "FAILED")


def run_checks(
    checks: Sequence[Check],
    subject: Any,
    *,
    first: Check | None = None,
    progress: Progress = lambda name, done, total: None,
    only: Collection[str] | None = None,
) -> tuple[CheckResult, ...]:
    """Run checks in order. `subject.undisturbed()` undoes what each does to models, clips and random state.

    Args:
        checks: functions of the subject.
        subject: what they check.
        first: a check without which the others mean nothing: they are skipped where it fails or is skipped.
        progress: receives the check's name, how many are done, and of how many.
        only: names of checks; all others but `first` are left out.

    Raises:
        Unusable: the model that a backend is tried on can't be loaded.
    """
    names = {check: check.__name__.removeprefix("check_") for check in checks}  # type: ignore[attr-defined]
    chosen = [check for check in checks if only is None or check is first or names[check] in only]
    results: list[CheckResult] = []
    reason = ""
    for done, check in enumerate(chosen):
        progress(names[check], done, len(chosen))
        contract = (check.__doc__ or "").partition("\n")[0].rstrip(".")
        started = time.monotonic()
        state, message = _run(check, subject, reason)
        results.append(CheckResult(names[check], contract, state, message, time.monotonic() - started))
        if check is first and state != "passed":
            reason = f"it needs the check {names[check]!r}, which fails" if state == "FAILED" else message
    progress("", len(chosen), len(chosen))
    return tuple(results)


def _run(check: Check, subject: Any, reason: str) -> tuple[State, str]:
    if reason:
        return "skipped", reason
    try:
        with warnings.catch_warnings(), subject.undisturbed():
            warnings.simplefilter("ignore")
            return "passed", check(subject) or ""
    except ContractViolation as fault:
        return "FAILED", str(fault)
    except Skip as error:
        return "skipped", str(error)
    except Unusable:
        raise
    except BaseException as error:
        if is_interruption(error):
            raise
        return "FAILED", describe(error)


def describe(error: BaseException) -> str:
    """An unexpected exception in one sentence: its type, its text, and the line of the plugin that raised it."""
    text = " ".join((error.message if isinstance(error, EncoreError) else str(error)).split())
    sentence = f"raised {type(error).__name__}" + (f": {text}" if text else "")
    here = str(Path(__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(here)]
    return f"{sentence} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else sentence


@contextmanager
def during(action: str) -> Iterator[None]:
    """An unexpected exception is a fault that begins with the action."""
    try:
        yield
    except (ContractViolation, Skip):
        raise
    except Exception as error:
        raise ContractViolation(f"{action} {describe(error)}") from error
