"""The checks of a metric."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable
from dataclasses import asdict, replace
from typing import Any, get_args

from encore import plugins
from encore.api import Metric, Result, Role
from encore.metrics.rows import ROLES, SETS
from encore.testing.core import CheckResult, ContractViolation, Progress, Skip, Suite, named, need
from encore.testing.metric_subject import MetricSubject, told
from encore.testing.small_model import Fixture

suite: Suite[MetricSubject] = Suite("metric")
MODELS = {*get_args(Role), "none"}
DIRECTIONS = {"gold", "lower", "higher", "base"}
NEAR = 1e-4  # relative, of figures whose sums run in another order


def run(
    target: type[Metric],
    fixture: Fixture,
    *,
    progress: Progress = lambda name, done, of: None,
    only: Collection[str] | None = None,
) -> tuple[CheckResult, ...]:
    """Every check of a metric on one small model in four roles.

    Args:
        target: the class, its `spec` set. fixture: the model and music. only: names of checks, to run no others.
    """
    return suite.run(MetricSubject(target, fixture), progress, only)


@suite.check("measure", "measure gives Results, at least one, where all that it needs is there")
def measure(subject: MetricSubject) -> str | None:
    try:
        rows = subject.rows()
    except Skip:
        raise
    except Exception as error:
        return f"it says that it can't: {told(error)}"
    need(rows, "no row: what can't be measured is a row with `why`, never left out")
    given: list[Any] = [*rows]
    odd = sorted({type(row).__name__ for row in given if not isinstance(row, Result)})
    need(not odd, f"rows of type {named(odd)}, not encore.api.Result")
    return None if any(row.value is not None for row in rows) else f"it measures nothing here: {rows[0].why}"


def _label(row: Result) -> str:
    return f"the row {row.metric} ({row.model}, {row.set})"


@suite.check("names", "rows name a known model and set, are unique, and begin with the first word of the metric's name")
def names(subject: MetricSubject) -> None:
    own = subject.target.spec.name
    word = own.replace("-", "_").partition("_")[0]
    others = set(plugins.metrics().names) - {own}
    seen: set[tuple[str, str, str]] = set()
    for row in subject.measured():
        need(row.model in MODELS, f"{_label(row)} names the model {row.model!r}; known are {', '.join(sorted(MODELS))}")
        need(row.set in SETS, f"{_label(row)} names the set {row.set!r}; known are {', '.join(SETS)}")
        need(
            row.metric.replace("-", "_").startswith(word),
            f"{_label(row)} is called {row.metric!r}, which does not begin with {word!r}: nobody will know whose it is",
        )
        need(
            row.metric not in others or own == f"{row.metric}_{row.set}",  # fad_holdout: fad, measured on holdout
            f"{_label(row)} has the name of another metric",
        )
        key = (row.metric, row.model, row.set)
        need(key not in seen, f"{_label(row)} is there twice")
        seen.add(key)


@suite.check("values", "a value is a finite number, or None with `why`; low ≤ value ≤ high, or no interval")
def values(subject: MetricSubject) -> None:
    for row in subject.measured():
        check_row(row)


def check_row(row: Result) -> None:
    """Raise the fault of a row's figures."""
    label = _label(row)
    if row.value is None:
        need(isinstance(row.why, str) and row.why.strip(), f"{label} has no value and no `why`")
        need(row.low is None and row.high is None, f"{label} has an interval and no value")
        return
    given: Any = row.value
    need(isinstance(given, (int, float)) and type(given) is not bool, f"{label} has the value {given!r}: no number")
    need(math.isfinite(row.value), f"{label} has the value {row.value}: a figure that is none is None, with `why`")
    need(row.why is None, f"{label} has a value and also says why it has none: {row.why}")
    need((row.low is None) == (row.high is None), f"{label} has one end of an interval, {row.low} to {row.high}")
    if row.low is not None and row.high is not None:
        slack = 1e-9 * (1 + abs(row.value))
        need(
            row.low - slack <= row.value <= row.high + slack,
            f"{label} has the value {row.value:.6g} outside its interval, {row.low:.6g} to {row.high:.6g}",
        )
    need(type(row.n) is int and row.n > 0, f"{label} has a value that rests on n = {row.n!r} tracks")


@suite.check("units", "direction is one of gold, lower, higher, base; unit and note are texts")
def units(subject: MetricSubject) -> None:
    for row in subject.measured():
        need(row.direction in DIRECTIONS, f"{_label(row)} has the direction {row.direction!r}")
        need(isinstance(row.unit, str), f"{_label(row)} has the unit {row.unit!r}")
        need(row.note is None or isinstance(row.note, str), f"{_label(row)} has the note {row.note!r}")


@suite.check("per_track", "per_track has a finite figure or None a track id of the row's set, no more than n")
def per_track(subject: MetricSubject) -> None:
    for row in subject.measured():
        tracks = {clip.track for clip in subject.clips[row.set]}  # type: ignore[index]
        foreign = sorted(map(str, row.per_track.keys() - tracks))
        need(not foreign, f"{_label(row)} has figures of {named(foreign)}, which is no track of {row.set}")
        odd = [track for track, v in row.per_track.items() if v is not None and not math.isfinite(v)]
        need(not odd, f"{_label(row)} has a figure of {named(odd)} that is not finite, and must be None")
        need(len(row.per_track) <= max(row.n, 0), f"{_label(row)} has {len(row.per_track)} tracks and n = {row.n}")


@suite.check("JSON", "a row is written as JSON and comes back the same")
def as_json(subject: MetricSubject) -> None:
    for row in subject.measured():
        try:
            text = json.dumps(asdict(row), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ContractViolation(f"{_label(row)} can't be written as JSON: {error}") from error
        again = Result(**json.loads(text))
        need(
            json.dumps(asdict(again), allow_nan=False) == text and again.per_track == dict(row.per_track),
            f"{_label(row)} comes back from JSON as another",
        )


@suite.check("determinism", "two runs give the same rows, whatever the shared random generators hold")
def determinism(subject: MetricSubject) -> None:
    first = subject.measured()
    moved = sorted(subject.seen.moved)
    need(not moved, f"it draws from, or seeds, {named(moved)} shared random generator: evaluation.seed is for that")
    fault = _difference(first, subject.rows(salt=2), 0.0)
    need(not fault, f"two runs differ: {fault}")


@suite.check("order", "the order of the tracks changes no figure")
def order(subject: MetricSubject) -> None:
    fault = _difference(subject.measured(), subject.rows(turned=True), NEAR)
    need(not fault, f"with the tracks in reverse order, {fault}")


@suite.check("models", "the models are what they were: weights, frozen parts, mode")
def models(subject: MetricSubject) -> None:
    subject.measured()
    changed = sorted(subject.seen.models)
    need(not changed, f"it changes the {named(changed)} model: weights, mode, or what requires a gradient")


@suite.check("shared objects", "clips, and what the evaluation hands out, are not written into")
def shared_objects(subject: MetricSubject) -> None:
    subject.measured()
    changed, written = sorted(subject.seen.clips), sorted(subject.seen.written)
    need(not changed, f"it writes into the codes of {named(changed)}")
    need(not written, f"it writes into what evaluation.{named(written)} returned, which other metrics read")


@suite.check("absent", "where what it does not need is absent, it gives rows, perhaps with `why`, and does not fail")
def absent(subject: MetricSubject) -> None:
    subject.measured()
    optional = subject.optional()
    try:
        _rows_without(subject, optional)
    except ContractViolation as fault:
        for thing in optional:  # which of them it was
            try:
                _rows_without(subject, [thing])
            except ContractViolation as one:
                raise ContractViolation(f"without {_thing(thing)} {one}; its spec's needs lack {thing!r}") from one
        raise ContractViolation(f"without {named([_thing(thing) for thing in optional])} {fault}") from fault


def _rows_without(subject: MetricSubject, things: list[str]) -> None:
    """Also where a set that is absent is there, and empty."""
    for empty in (False, True) if set(things) & set(SETS) else (False,):
        try:
            rows = subject.rows(tuple(things), empty=empty)
        except Skip:
            raise
        except Exception as error:
            told(error)
            continue
        need(rows, "it gives no row: what can't be measured is a row with `why`, never left out")
        for row in rows:
            check_row(row)


def _thing(name: str) -> str:
    kinds = dict.fromkeys(ROLES, "model") | dict.fromkeys(SETS, "tracks")
    return f"{name} {kinds[name]}" if name in kinds else "an embedder"  # type: ignore[index]


@suite.check("without tokens", "of models without tokens it gives rows, perhaps with `why`, or its spec needs logits")
def without_tokens(subject: MetricSubject) -> str | None:
    if "logits" in subject.needs:
        raise Skip("it needs logits")
    subject.measured()
    try:
        rows = subject.rows(tokens=False)
    except Skip:
        raise
    except Exception as error:
        try:
            return f"it says that it can't: {told(error)}"
        except ContractViolation as fault:
            raise ContractViolation(f"of models without tokens it {fault}; its spec's needs lack 'logits'") from fault
    need(rows, "of models without tokens it gives no row")
    for row in rows:
        check_row(row)
    return None


def _difference(rows: Iterable[Result], others: Iterable[Result], tolerance: float) -> str:
    """How two lists of rows differ, or nothing. With a tolerance, figures may differ that much, and notes be others."""
    first, second = ({(row.metric, row.model, row.set): row for row in some} for some in (rows, others))
    if first.keys() != second.keys():
        return f"other rows come out: {named(sorted(first.keys() ^ second.keys()))}"
    for key, row in first.items():
        other = second[key]
        if not tolerance:
            if repr(row) != repr(replace(other)):
                return f"{_label(row)} is {row.value} and {other.value}, or differs in its details"
            continue
        for name in ("value", "low", "high"):
            a, b = getattr(row, name), getattr(other, name)
            if (a is None) != (b is None) or (a is not None and abs(a - b) > tolerance * (1 + abs(a))):
                return f"{name} of {_label(row)} is {b} and was {a}"
        for track, a in row.per_track.items():
            b = other.per_track.get(track)
            if (a is None) != (b is None) or (
                a is not None and b is not None and abs(a - b) > tolerance * (1 + abs(a))
            ):
                return f"{_label(row)} has {b} for {track} and had {a}"
    return ""
