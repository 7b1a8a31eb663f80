"""The checks of a method."""

from __future__ import annotations

from collections.abc import Collection

from encore.api import Method
from encore.testing import method_losses, method_runs
from encore.testing.core import CheckResult, Progress, Suite
from encore.testing.method_subject import MethodSubject
from encore.testing.small_model import Fixture

suite: Suite[MethodSubject] = Suite("method", [*method_losses.suite.checks, *method_runs.suite.checks])


def run(
    target: type[Method],
    fixture: Fixture,
    *,
    progress: Progress = lambda name, done, of: None,
    only: Collection[str] | None = None,
) -> tuple[CheckResult, ...]:
    """Every check of a method on one small model.

    Args:
        target: the class, its `spec` set. fixture: the model and music. only: names of checks, to run no others.
    """
    return suite.run(MethodSubject(target, fixture), progress, only)
