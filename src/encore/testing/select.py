"""What `encore plugins check` is about: one name, a distribution, or everything that is installed."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from encore import plugins
from encore.errors import MissingExtraError, UnknownNameError, UsageError
from encore.testing.core import CheckResult, Report
from encore.testing.run import FIXTURE, KINDS, RESOLVED, check

Chosen = list[tuple[str, str]]  # kind, name
Progress = Callable[[str, str, int, int], None]


def chosen(
    name: str | None = None, *, kind: str | None = None, distribution: str | None = None, everything: bool = False
) -> Chosen:
    """Kinds and names that are meant, in the order of kinds and of registration.

    Args:
        name: one name; the other two are for more. kind: no other than this kind.
        distribution: all that a distribution registers. everything: all that is installed.

    Raises:
        UsageError: not exactly one of the three was given, there is no such kind or distribution, or two kinds share
            the name.
        UnknownNameError: nothing has the name.
    """
    if sum([name is not None, distribution is not None, everything]) != 1:
        raise UsageError("check takes a NAME, --distribution or --all, one of them", "encore plugins check npo")
    if kind is not None and kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r}", f"the kinds are: {', '.join(KINDS)}")
    registries = plugins.registries()
    entries = [
        (one, entry.spec.name, entry.source.distribution)
        for one in KINDS
        for entry in registries[f"{one}s"]
        if kind is None or one == kind
    ]
    if name is not None:
        found = [(one, own) for one, own, _ in entries if own == name]
        kinds = list(dict.fromkeys(one for one, _ in found))
        if not found:
            near = difflib.get_close_matches(name, [own for _, own, _ in entries], n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "encore plugins shows what is installed"
            raise UnknownNameError(f"no {kind or 'method, backend, metric or embedder'} is called {name!r}", hint)
        if len(kinds) > 1:
            raise UsageError(f"{name!r} is {' and '.join(f'a {one}' for one in kinds)}", "say which with --kind")
        return found[:1]
    if distribution is not None:
        names = sorted({source for _, _, source in entries})
        if distribution not in names:
            raise UsageError(f"no plugin comes from {distribution!r}", f"the distributions are: {', '.join(names)}")
        entries = [entry for entry in entries if entry[2] == distribution]
    return list(dict.fromkeys((one, own) for one, own, _ in entries))


def check_all(
    things: Chosen,
    *,
    model: str | None = None,
    backend: str | None = None,
    offline: bool = False,
    progress: Progress = lambda thing, check, done, of: None,
) -> list[Report]:
    """Check each. Of several, one that can't be tried here (packages or a model are missing) is skipped, with why.

    Args:
        things: from `chosen`.
        model: what backends are tried on; where `backend` is given, what the other kinds are tried on instead.
        backend: what loads `model` for methods, metrics and embedders.
        progress: told what is checked, the check's name, how many are done, and of how many.

    Raises:
        UsageError, MissingExtraError, InputError: as `check`, where there is one thing only.
    """
    mixed = len({kind == "backend" for kind, _ in things}) > 1
    reports = []
    for kind, name in things:
        of_backend = kind == "backend"
        given = model if not mixed or of_backend == (backend is None) or (of_backend and name == backend) else None
        thing = f"{kind} {name}"

        def told(check: str, done: int, of: int, thing: str = thing) -> None:
            progress(thing, check, done, of)

        if len(things) > 1 and of_backend and given is None and name != FIXTURE:
            reports.append(_skipped(kind, name, "it has no model to be tried on: name one with --model"))
            continue
        try:
            reports.append(
                check(kind, name, model=given, backend=None if of_backend else backend, offline=offline, progress=told)
            )
        except MissingExtraError as error:
            if len(things) == 1:
                raise
            reports.append(_skipped(kind, name, f"{error.message}: {error.hint}"))
    return reports


def _skipped(kind: str, name: str, why: str) -> Report:
    source = str(plugins.registries()[f"{kind}s"].get(name).source)
    return Report(kind, name, source, (CheckResult(*RESOLVED, "skipped", why),))
