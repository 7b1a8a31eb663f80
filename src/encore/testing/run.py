"""Choose plugins by name, check them, report."""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from encore import plugins
from encore.errors import MissingExtraError, PluginError, UnknownNameError, UsageError
from encore.testing.core import CheckResult, Progress, Report

if TYPE_CHECKING:
    from encore.testing.fixture import Fixture

KINDS = ("method", "backend", "metric", "embedder")
RESOLVE = ("resolve", "its target is imported, and is a complete subclass of the class in encore.api")
BACKEND, MODEL = "musicgen", "tiny"  # embedded: what methods, metrics and embedders are tried on


def check(
    kind: str,
    name: str,
    *,
    model: str | None = None,
    backend: str | None = None,
    offline: bool = False,
    progress: Progress = lambda name, done, total: None,
) -> Report:
    """Run the contract on one registered plugin.

    Args:
        kind: "method", "backend", "metric" or "embedder".
        name: as it is registered.
        model: folder or hub name of the model to work on; by default `tiny`, for a backend other than musicgen none.
        backend: loads `model` for a method, metric or embedder.
        offline: load from disk alone.
        progress: receives the check's name, how many are done, and of how many.

    Raises:
        UsageError: there is no such kind or name, or there is no model for the backend.
        MissingExtraError: a package that it requires is not installed.
        PluginError: two plugins register the name.
        InputError: the model can't be loaded.
    """
    _need_kind(kind)
    registry = plugins.registries()[f"{kind}s"]
    source = str(registry.get(name).source)
    try:
        target = registry.resolve(name)
    except PluginError as error:
        return Report(kind, name, source, (CheckResult(*RESOLVE, "FAILED", error.message),))
    loader = name if kind == "backend" else backend or BACKEND
    if model is None and loader != BACKEND:
        raise UsageError(f"there is no model to try the backend {loader!r} on", "name a small one with --model")
    suite = importlib.import_module(f"encore.testing.{kind}s")
    if kind == "backend":
        results = suite.run(target, model or MODEL, offline=offline, progress=progress)
    else:
        results = suite.run(target, _fixture(loader, model or MODEL, offline), progress=progress)
    return Report(kind, name, source, (CheckResult(*RESOLVE, "passed"), *results))


def assert_conforms(kind: str, name: str, *, model: str | None = None, backend: str | None = None) -> None:
    """For tests: `check` from disk alone, and an AssertionError with one line per failed check."""
    failed = check(kind, name, model=model, backend=backend, offline=True).failed
    if failed:
        lines = [f"the {kind} {name!r} does not keep the contract:"]
        raise AssertionError("\n".join(lines + [f"{result.check}: {result.sentence}" for result in failed]))


def choose(
    name: str | None = None, *, kind: str | None = None, distribution: str | None = None, everything: bool = False
) -> list[tuple[str, str]]:
    """Kinds and names of the plugins to check, in the order of kinds and of registration.

    Args:
        name: one plugin's name.
        kind: only plugins of this kind.
        distribution: all plugins of a distribution.
        everything: all that are installed.

    Raises:
        UsageError: not exactly one of the other three was given, there is no such kind or distribution, or two kinds
            share the name.
        UnknownNameError: no plugin has the name.
    """
    if [name is not None, distribution is not None, everything].count(True) != 1:
        raise UsageError("check takes a NAME, --distribution or --all, one of them", "encore plugins check npo")
    if kind is not None:
        _need_kind(kind)
    registries = plugins.registries()
    entries = [(k, entry) for k in KINDS if kind in (None, k) for entry in registries[f"{k}s"]]
    if name is not None:
        kinds = list(dict.fromkeys(k for k, entry in entries if entry.spec.name == name))
        if not kinds:
            near = difflib.get_close_matches(name, [entry.spec.name for _, entry in entries], n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "encore plugins shows what is installed"
            raise UnknownNameError(f"no {kind or 'method, backend, metric or embedder'} is called {name!r}", hint)
        if len(kinds) > 1:
            raise UsageError(f"{name!r} is {' and '.join(f'a {k}' for k in kinds)}", "say which with --kind")
        return [(kinds[0], name)]
    sources = sorted({entry.source.distribution for _, entry in entries})
    if distribution is not None and distribution not in sources:
        raise UsageError(f"no plugin comes from {distribution!r}", f"the distributions are: {', '.join(sources)}")
    chosen = [(k, entry.spec.name) for k, entry in entries if distribution in (None, entry.source.distribution)]
    return list(dict.fromkeys(chosen))


def check_all(
    chosen: list[tuple[str, str]],
    *,
    model: str | None = None,
    backend: str | None = None,
    offline: bool = False,
    progress: Callable[[str, str, int, int], None] = lambda plugin, check, done, total: None,
) -> list[Report]:
    """Check each. Of several, one that can't be tried here (packages or a model are missing) is skipped.

    Args:
        chosen: kinds and names, from `choose`.
        model: what backends are tried on; where `backend` is given, what the other kinds are tried on instead.
        backend: loads `model` for methods, metrics and embedders.
        offline: load from disk alone.
        progress: receives the plugin, the check's name, how many are done, and of how many.

    Raises:
        UsageError, MissingExtraError, InputError: as `check`, where there is one plugin only.
    """
    mixed = len({kind == "backend" for kind, _ in chosen}) > 1
    reports = []
    for kind, name in chosen:
        is_backend, several = kind == "backend", len(chosen) > 1
        given = model if not mixed or is_backend == (backend is None) or (is_backend and name == backend) else None
        if several and is_backend and given is None and name != BACKEND:
            reports.append(_skipped(kind, name, "there is no model to try it on: name one with --model"))
            continue
        loader = None if is_backend else backend
        report_to = functools.partial(progress, f"{kind} {name}")
        try:
            reports.append(check(kind, name, model=given, backend=loader, offline=offline, progress=report_to))
        except MissingExtraError as error:
            if not several:
                raise
            reports.append(_skipped(kind, name, f"{error.message}: {error.hint}"))
    return reports


def _skipped(kind: str, name: str, reason: str) -> Report:
    source = str(plugins.registries()[f"{kind}s"].get(name).source)
    return Report(kind, name, source, (CheckResult(*RESOLVE, "skipped", reason),))


def _need_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r}", f"the kinds are: {', '.join(KINDS)}")


@functools.lru_cache(maxsize=1)
def _fixture(backend: str, model: str, offline: bool) -> Fixture:
    from encore.testing.fixture import Fixture

    return Fixture.load(backend, model, offline=offline)
