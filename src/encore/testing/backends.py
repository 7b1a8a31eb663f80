"""The checks of a backend."""

from __future__ import annotations

from collections.abc import Collection

from encore.api import Backend
from encore.testing import backend_generation, backend_likelihood, backend_parts, backend_weights
from encore.testing.backend_subject import BackendSubject
from encore.testing.core import CheckResult, Progress, Suite

suite: Suite[BackendSubject] = Suite(
    "backend",
    [
        *backend_parts.suite.checks,
        *backend_likelihood.suite.checks,
        *backend_generation.suite.checks,
        *backend_weights.suite.checks,
    ],
)


def run(
    target: type[Backend],
    model: str,
    *,
    offline: bool = False,
    progress: Progress = lambda name, done, of: None,
    only: Collection[str] | None = None,
) -> tuple[CheckResult, ...]:
    """Every check of a backend on one model.

    Args:
        target: the class, its `spec` set. model: a folder or name that it loads; a small one, for it is loaded often.
        only: names of checks, to run no others.

    Raises:
        Unusable: the backend refuses the model with an InputError.
    """
    return suite.run(BackendSubject(target, model, offline=offline), progress, only)
