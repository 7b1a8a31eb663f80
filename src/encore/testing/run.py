"""By name: find what is to be checked, run its suite, say what failed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from encore import plugins
from encore.errors import PluginError, UsageError
from encore.testing.core import CheckResult, Progress, Report

if TYPE_CHECKING:
    from encore.testing.small_model import Fixture

KINDS = ("method", "backend", "metric", "embedder")
RESOLVED = ("resolve", "its target is imported, and is a complete subclass of the class in encore.api")
FIXTURE, FIXTURE_MODEL = "musicgen", "tiny"  # what methods, metrics and embedders are tried on; it is embedded


def check(
    kind: str,
    name: str,
    *,
    model: str | None = None,
    backend: str | None = None,
    offline: bool = False,
    progress: Progress = lambda name, done, of: None,
) -> Report:
    """Run the contract on one registered thing.

    Args:
        kind: "method", "backend", "metric" or "embedder".
        name: as it is registered.
        model: folder or hub name of the model to work on. A backend's own; `tiny`, which is embedded, without it.
        backend: what loads `model` for a method, metric or embedder.
        offline: load from disk alone.
        progress: told a check's name, how many are done, and of how many.

    Raises:
        UsageError: there is no such kind or name, or a backend was named without a model to try it on.
        MissingExtraError: what it requires is not installed.
        PluginError: two plugins register the name.
        InputError: the model to work on can't be loaded.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r}", f"the kinds are: {', '.join(KINDS)}")
    registry = plugins.registries()[f"{kind}s"]
    source = str(registry.get(name).source)
    try:
        target: Any = registry.resolve(name)
    except PluginError as error:
        broken = CheckResult(*RESOLVED, "FAILED", error.message)
        return Report(kind, name, source, (broken,))
    resolved = CheckResult(*RESOLVED, "passed")
    return Report(kind, name, source, (resolved, *_run(kind, target, name, model, backend, offline, progress)))


def _run(
    kind: str, target: Any, name: str, model: str | None, backend: str | None, offline: bool, progress: Progress
) -> tuple[CheckResult, ...]:
    if kind == "backend":
        from encore.testing import backends

        return backends.run(target, _model(name, model), offline=offline, progress=progress)
    fixture = _fixture(backend or FIXTURE, _model(backend or FIXTURE, model), offline)
    if kind == "method":
        from encore.testing import methods

        return methods.run(target, fixture, progress=progress)
    if kind == "metric":
        from encore.testing import metrics

        return metrics.run(target, fixture, progress=progress)
    from encore.testing import embedders

    return embedders.run(target, fixture, progress=progress)


def assert_conforms(kind: str, name: str, *, model: str | None = None, backend: str | None = None) -> None:
    """For tests: `check`, and an AssertionError with a line for each check that failed.

    A model is looked for on disk only. Arguments and what else is raised: see `check`.
    """
    report = check(kind, name, model=model, backend=backend, offline=True)
    if report.failed:
        lines = [f"{outcome.check}: {outcome.sentence}" for outcome in report.failed]
        raise AssertionError(f"the {kind} {name!r} does not keep the contract:\n" + "\n".join(lines))


def _model(backend: str, model: str | None) -> str:
    """The model a backend is tried on."""
    if model is not None:
        return model
    if backend == FIXTURE:
        return FIXTURE_MODEL
    raise UsageError(f"the backend {backend!r} has no model to be tried on", "name one with --model, a small one")


@functools.lru_cache(maxsize=1)
def _fixture(backend: str, model: str, offline: bool) -> Fixture:
    """Loaded and encoded once for all that is checked on it."""
    from encore.testing.small_model import Fixture

    return Fixture.load(backend, model, offline=offline)
