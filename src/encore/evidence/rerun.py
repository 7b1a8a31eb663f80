"""Measure a run again, as it was measured, and hold the figures against those of the bundle."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from encore.api import Result
from encore.errors import InputError

ROUNDING = 1e-4  # relative: what other processors and versions of libraries make of a figure
NOTHING = 1e-6  # difference that says nothing, of figures next to zero
SETTINGS: Mapping[str, type | tuple[type, ...]] = {  # of `evaluation.json` -> what they are
    "golds": dict, "seed": int, "embedder": str, "force": bool, "metrics": (list, type(None)), "full": bool,
    "models": dict,
}  # fmt: skip

State = Literal["same", "rounding", "within", "differs", "missing", "new"]


@dataclass(frozen=True)
class Compared:
    """One row, as bundled and as measured again. What is bundled never judges itself: it may have been made up.

    Args:
        low, high: the interval as measured again.
        state: the same numbers; the same but for rounding; measured on another machine or with other versions, within
            the interval; or a mismatch: it differs, is missing now, or was not there before.
        what: of a row that differs, which of its figures do.
    """

    metric: str
    model: str
    set: str
    bundled: float | None
    low: float | None
    high: float | None
    again: float | None
    state: State
    what: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return self.state in ("same", "rounding", "within")


def rerun(
    run: Path,
    how: Any,
    bundled: Sequence[Result],
    *,
    device: str = "auto",
    offline: bool = False,
    reporter: Any = None,
) -> list[Compared]:
    """All rows, measured with the settings in `evaluation.json`, against the bundled ones.

    Args:
        run: a run's folder. how: what `evaluation.json` holds.

    Raises:
        InputError: the settings can't be read; a model or a track is not there any more, or is another one than was
            measured.
    """
    from encore.runs.environment import hardware, versions
    from encore.runs.evaluate_run import Asked, evaluate_subject
    from encore.runs.metrics_json import metrics_json
    from encore.runs.models import model_sha256
    from encore.runs.open_run import from_run
    from encore.runs.two import shared

    if not isinstance(how, dict):
        raise InputError("the bundle does not say how its figures were measured: evaluation.json is not an object")
    wrong = [name for name, kind in SETTINGS.items() if name not in how or not isinstance(how[name], kind)]
    if wrong or not isinstance(how.get("draws", 1), int):
        what = " and ".join(wrong or ["draws"])
        raise InputError(f"the bundle does not say how its figures were measured: {what} is missing or is another kind")
    names, golds, seed = how["metrics"], how["golds"], how["seed"]
    if golds.keys() - {"gold", "gold2"}:  # else another model could be measured in the place of the run's
        raise InputError(f"the bundle names a gold for {' and '.join(sorted(golds.keys() - {'gold', 'gold2'}))}")
    subject = from_run(run, golds=golds, seed=seed, device=device, offline=offline, reporter=reporter)
    for role, model in subject.models.items():
        if model_sha256(model) != how["models"].get(role):
            raise InputError(f"the {role} model is not the one that was measured: its weights differ")
    asked = Asked(
        tuple(names) if names is not None else None, how["full"], how["embedder"], seed, how["force"], golds, False,
        how.get("draws", 1),
    )  # fmt: skip
    found = evaluate_subject(subject, asked, offline=offline, reporter=reporter)
    models = list(subject.models.values())
    with shared(models):  # as many threads as `evaluation.json` was written with
        here = hardware(str(models[0].device))
    as_kept = json.loads(json.dumps(metrics_json(found)))["results"]
    alike = (how.get("versions"), how.get("hardware")) == (versions(), here)
    return compare(bundled, [Result(**row) for row in as_kept], alike=alike)


def compare(bundled: Sequence[Result], again: Sequence[Result], *, alike: bool) -> list[Compared]:
    """Row by row, in the order of the bundle; what is new comes last.

    Where machine and versions are alike, all figures of a row must come out again but for rounding: value, interval, n,
    tracks and details. Elsewhere chance may fall otherwise: the value must then lie in the interval that was measured
    now, and no end and no track's figure further from the one measured now than half of that interval; without one,
    all but details must agree but for rounding.
    """
    fresh = {_key(row): row for row in again}
    old = {_key(row) for row in bundled}
    new = [Compared(*key, None, row.low, row.high, row.value, "new") for key, row in fresh.items() if key not in old]
    return [*(_compared(row, fresh.get(_key(row)), alike) for row in bundled), *new]


def _compared(row: Result, again: Result | None, alike: bool) -> Compared:
    if again is None:
        return Compared(*_key(row), row.value, None, None, None, "missing")
    was, now = _figures(row, alike), _figures(again, alike)
    state, what = _state(was, now, again, alike)
    return Compared(*_key(row), row.value, again.low, again.high, again.value, state, what)


def _state(
    was: Mapping[str, object], now: Mapping[str, object], again: Result, alike: bool
) -> tuple[State, tuple[str, ...]]:
    if was == now:
        return "same", ()
    off = [name for name in {**was, **now} if not _agree(was.get(name), now.get(name))]
    if not off:
        return "rounding", ()
    if not alike and again.low is not None and again.high is not None:
        middle, reach = (again.low + again.high) / 2, (again.high - again.low) / 2
        off = [name for name in off if not _near(was.get(name), middle if name == "value" else now.get(name), reach)]
    return ("differs", tuple(off)) if off else ("within", ())


def _figures(row: Result, alike: bool) -> dict[str, object]:
    """What must come out again, by a name that a person reads."""
    told = {name: getattr(row, name) for name in ("value", "low", "high", "n", "unit", "direction")}
    told |= {f"track {name}": figure for name, figure in row.per_track.items()}
    return {**told, "details": row.details} if alike else told


def _agree(was: object, now: object) -> bool:
    """Equal but for rounding, all the way down."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        return was.keys() == now.keys() and all(_agree(was[name], now[name]) for name in was)
    if isinstance(was, (list, tuple)) and isinstance(now, (list, tuple)):
        return len(was) == len(now) and all(map(_agree, was, now))
    if isinstance(was, (int, float)) and isinstance(now, (int, float)):
        return math.isclose(was, now, rel_tol=ROUNDING, abs_tol=NOTHING)
    return was == now


def _near(was: object, now: object, reach: float) -> bool:
    """Whether two figures, which are floats where `n` is not, are no further apart than that."""
    return isinstance(was, float) and isinstance(now, float) and abs(was - now) <= reach


def _key(row: Result) -> tuple[str, str, str]:
    return row.metric, row.model, row.set
