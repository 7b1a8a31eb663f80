"""Measure a run again, as it was measured, and hold the figures against those of the bundle."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from encore.api import Result
from encore.errors import InputError

ROUNDING = 1e-4  # relative: what other processors and versions of libraries make of a figure without an interval

State = Literal["same", "within", "rounding", "differs", "missing", "new"]


@dataclass(frozen=True)
class Compared:
    """One figure, as bundled and as measured again.

    Args:
        state: the same number; within the bundled interval; without an interval, but for rounding; or a mismatch: it
            differs, is missing now, or was not there before.
    """

    metric: str
    model: str
    set: str
    bundled: float | None
    low: float | None
    high: float | None
    again: float | None
    state: State

    @property
    def holds(self) -> bool:
        return self.state in ("same", "within", "rounding")


def rerun(
    run: Path, how: Mapping[str, Any], *, device: str = "auto", offline: bool = False, reporter: Any = None
) -> list[Result]:
    """All rows, measured with the settings in `evaluation.json`.

    Args:
        run: a run's folder. how: what `evaluation.json` holds.

    Raises:
        InputError: a model or a track is not there any more, or is another one than was measured.
    """
    from encore.runs.evaluate_run import Asked, evaluate_subject
    from encore.runs.models import model_sha256
    from encore.runs.open_run import from_run

    try:
        golds, seed, embedder, force = how["golds"], how["seed"], how["embedder"], how["force"]
        names, full, hashes, draws = how["metrics"], how["full"], how["models"], how.get("draws", 1)
    except KeyError as error:
        raise InputError(f"the bundle does not say how its figures were measured: {error} is missing") from error
    subject = from_run(run, golds=golds, device=device, offline=offline, reporter=reporter)
    for role, model in subject.models.items():
        if model_sha256(model) != hashes.get(role):
            raise InputError(f"the {role} model is not the one that was measured: its weights differ")
    asked = Asked(tuple(names) if names is not None else None, full, embedder, seed, force, golds, False, draws)
    return list(evaluate_subject(subject, asked, offline=offline, reporter=reporter))


def compare(bundled: Sequence[Result], again: Sequence[Result]) -> list[Compared]:
    """Figure by figure, in the order of the bundle; what is new comes last."""
    fresh = {_key(row): row for row in again}
    compared = [_compared(row, fresh.get(_key(row))) for row in bundled]
    old = {_key(row) for row in bundled}
    return [*compared, *_new(row for key, row in fresh.items() if key not in old)]


def _new(rows: Iterator[Result] | Any) -> Iterator[Compared]:
    for row in rows:
        yield Compared(row.metric, row.model, row.set, None, None, None, row.value, "new")


def _compared(row: Result, again: Result | None) -> Compared:
    value = again.value if again is not None else None
    return Compared(row.metric, row.model, row.set, row.value, row.low, row.high, value, _state(row, again))


def _state(row: Result, again: Result | None) -> State:
    if again is None:
        return "missing"
    if row.value == again.value:
        return "same"
    if row.value is None or again.value is None:
        return "differs"
    if row.low is not None and row.high is not None:
        return "within" if row.low <= again.value <= row.high else "differs"
    return "rounding" if math.isclose(row.value, again.value, rel_tol=ROUNDING) else "differs"


def _key(row: Result) -> tuple[str, str, str]:
    return row.metric, row.model, row.set
