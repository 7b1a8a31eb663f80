"""Measures a run again with the same settings, and compares the values with the bundle's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from encore.api import Result
from encore.errors import GateError, InputError, NotCheckedError, ToleranceError

ROUNDING = 1e-4  # relative tolerance for other processors and library versions
NOTHING = 1e-6  # absolute tolerance, for values near zero
SETTINGS: Mapping[str, type | tuple[type, ...]] = {  # keys of `evaluation.json` and their types
    "golds": dict, "seed": int, "embedder": str, "force": bool, "metrics": (list, type(None)), "full": bool,
    "models": dict, "notes": list,
}  # fmt: skip

State = Literal["same", "rounding", "chance", "unmeasured", "differs", "missing", "new"]
Tolerance = Literal["exact", "machine", "chance"]
ACCEPTED: Mapping[Tolerance, tuple[State, ...]] = {
    "exact": ("same",), "machine": ("same", "rounding"), "chance": ("same", "rounding", "chance"),
}  # fmt: skip
WRONG: tuple[State, ...] = ("differs", "missing", "new")
TEXTS = ("why", "note", "details")  # fields of a row beside its values
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Compared:
    """One row, as bundled and as measured again. Bundled values may be forged, so they set no tolerance.

    Args:
        bundled: value in the bundle.
        low: lower end of the interval, measured again.
        high: upper end of the interval, measured again.
        again: value, measured again.
        state: "same" (exactly), "rounding" (within rounding), "chance" (within the interval measured again),
            "unmeasured" (not measurable here), or a mismatch: "differs", "missing" (not measured again) or "new" (not
            in the bundle).
        what: unless same or rounding, the fields that differ, or why it was not measured.
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


@dataclass(frozen=True)
class Rerun:
    """The result of measuring again.

    Args:
        rows: rows in the order of the bundle; new rows come last.
        absent: reasons by set or role that could not be measured.
        alike: whether the bundle's hardware and versions are those of this machine.
        hardware: the bundle's hardware.
    """

    rows: Sequence[Compared]
    absent: Mapping[str, str]
    alike: bool
    hardware: str = ""

    def count(self, *states: State) -> int:
        return sum(row.state in states for row in self.rows)


def rerun(
    folder: Path,
    how: Any,
    bundled: Sequence[Result],
    *,
    run: Path | None = None,
    catalog_is_in: bool = False,
    roots: Sequence[Path] = (),
    catalogs: Sequence[Path] = (),
    device: str = "auto",
    offline: bool = False,
    reporter: Any = None,
) -> Rerun:
    """Measure with the settings in `evaluation.json`, and compare with the bundled rows.

    Args:
        folder: a run's folder made of the bundle; its `request.json` is updated with current paths.
        how: content of `evaluation.json`.
        catalog_is_in: whether the bundle names the retain and held-out tracks.

    Raises:
        InputError: the settings can't be read, or the run's model is not the one that was measured.
        NotCheckedError: nothing can be measured, as the forget tracks or the base model are not found.
    """
    from encore.evaluate.inputs import OtherWeightsError, from_run
    from encore.evaluate.parallel import threads_for_two
    from encore.evaluate.run import EvalConfig, evaluate_inputs
    from encore.evidence.lookup import as_kept, find_inputs
    from encore.evidence.redaction import public_rows
    from encore.store.environment import hardware, versions
    from encore.store.metrics_json import metrics_json
    from encore.store.model_name import model_sha256

    check_settings(how)
    inputs = find_inputs(folder, how, run=run, roots=roots, catalogs=catalogs)
    hint = "--root FOLDER names a folder to find tracks and models in, by hash; repeat it for more"
    if "forget" in inputs.absent:
        raise NotCheckedError(f"nothing could be measured again: {inputs.absent['forget']}", hint)
    golds: Any = inputs.golds
    try:
        evaluation_inputs = from_run(
            folder, golds=golds, seed=how["seed"], device=device, offline=offline, reporter=reporter
        )
    except OtherWeightsError:
        raise
    except InputError as error:
        raise NotCheckedError(f"nothing could be measured again: {error.message}", hint) from error
    for role in [role for role in ("gold", "gold2") if role in evaluation_inputs.models]:
        if role in how["models"] and model_sha256(evaluation_inputs.models[role]) != how["models"][role]:
            inputs.absent[role] = (
                f"the {role} model that was found is not the one that was measured: its weights differ"
            )
            del evaluation_inputs.models[role]
    config = EvalConfig(
        tuple(how["metrics"]) if how["metrics"] is not None else None, how["full"], how["embedder"], how["seed"],
        how["force"], golds, False, how.get("samples_per_caption", 1),
    )  # fmt: skip
    results = evaluate_inputs(evaluation_inputs, config, offline=offline, reporter=reporter)
    models = list(evaluation_inputs.models.values())
    with threads_for_two(models):  # as many threads as `evaluation.json` was written with
        here = hardware(str(models[0].device))
    rows = as_kept(metrics_json(results)["results"])
    rows = public_rows(folder, rows, catalog=True)  # without current folders
    if run is not None:
        rows = public_rows(run, rows, catalog=catalog_is_in)
    alike = not inputs.absent and (how.get("versions"), how.get("hardware")) == (versions(), here)
    compared = compare(bundled, [Result(**row) for row in as_kept(rows)], alike=alike, absent=bool(inputs.absent))
    recorded = how.get("hardware") if isinstance(how.get("hardware"), dict) else {}
    return Rerun(compared, inputs.absent, alike, str(recorded.get("name", "")) if recorded else "")


def check_settings(how: Any) -> None:
    """Check that `evaluation.json` has all settings of the evaluation.

    Raises:
        InputError: names the settings that are missing or of another type.
    """
    if not isinstance(how, dict):
        raise InputError("the bundle does not say how its figures were measured: evaluation.json is not an object")
    wrong = [name for name, kind in SETTINGS.items() if name not in how or not isinstance(how[name], kind)]
    wrong += [
        name for name in ("seed", "samples_per_caption") if type(how.get(name, 1)) is not int and name not in wrong
    ]
    if not wrong:
        wrong += [name for name in ("seed",) if how[name] < 0] + [
            name for name in ("samples_per_caption",) if how.get(name, 1) < 1
        ]
        wrong += [name for name in ("metrics", "notes") if not all(isinstance(item, str) for item in how[name] or ())]
        wrong += [name for name in ("golds", "models") if not all(isinstance(i, str) for i in how[name].values())]
    if wrong:
        raise InputError(
            f"the bundle does not say how its figures were measured: {' and '.join(wrong)} missing or of another kind"
        )
    if how["golds"].keys() - {"gold", "gold2"}:  # else another model could replace the run's
        raise InputError(f"the bundle names a gold for {' and '.join(sorted(how['golds'].keys() - {'gold', 'gold2'}))}")


def check_rerun(result: Rerun, tolerance: Tolerance = "machine") -> None:
    """Check the values that were measured again.

    Args:
        tolerance: differences that are accepted.

    Raises:
        GateError: a value is not reproduced.
        ToleranceError: all are reproduced, some less closely than `tolerance`.
        NotCheckedError: some could not be measured.
    """
    rows = result.rows
    if wrong := [row for row in rows if row.state in WRONG]:
        raise GateError(
            f"{len(wrong)} of {len(rows)} figures are not reproduced: {_named(wrong)}",
            "compare the versions in run.json with `encore doctor`; other versions may give other figures",
        )
    accepted = ACCEPTED[tolerance]
    loose = [row for row in rows if row.state not in (*accepted, "unmeasured")]
    unmeasured = [row for row in rows if row.state == "unmeasured"]
    beside = f"; {len(unmeasured)} could not be measured" if unmeasured else ""
    if loose:
        on = f"the bundle says that it was measured on {result.hardware!r}; " if result.hardware else ""
        raise ToleranceError(
            f"{agreement(result)}{beside}: {_named(loose)}",
            f"{on}what differs by chance there is accepted with --tolerance chance" if tolerance == "machine" else
            "--tolerance machine accepts rounding, --tolerance chance what lies within the intervals",
        )  # fmt: skip
    if unmeasured:
        why = "; ".join(dict.fromkeys([*result.absent.values(), *(row.what[0] for row in unmeasured if row.what)]))
        raise NotCheckedError(
            f"{len(unmeasured)} of {len(rows)} figures could not be measured ({why}); {agreement(result)}",
            "--root FOLDER finds tracks and models by hash, --catalog FILE captions",
        )


def agreement(result: Rerun) -> str:
    """Summary of the agreement: "57 identical, 3 within rounding, 22 only within their intervals"."""
    counts = {"identical": "same", "within rounding": "rounding", "only within their intervals": "chance"}
    parts = [f"{result.count(state)} {words}" for words, state in counts.items() if result.count(state)]  # type: ignore[arg-type]
    return ", ".join(parts) or "none measured"


def _named(rows: Sequence[Compared]) -> str:
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return ", ".join(f"{row.metric} ({row.model}, {row.set})" for row in rows[:5]) + more


def compare(bundled: Sequence[Result], again: Sequence[Result], *, alike: bool, absent: bool = False) -> list[Compared]:
    """Compare row by row, in the order of the bundle; new rows come last.

    All fields of a row must agree within rounding: value, interval, n, tracks, sentences and details. Otherwise the row
    is "chance" if the bundled value lies in the interval measured again, the ends of the interval and the per-track
    values are within half of its width, and only details differ beside; else it "differs".

    Args:
        alike: the bundle claims the same hardware and versions: "chance" is then not accepted. A claim can only make
            the comparison stricter.
        absent: some tracks or models were not found: rows that lack them are no mismatch.
    """
    fresh = {_key(row): row for row in again}
    old = {_key(row) for row in bundled}
    new = [
        Compared(*key, None, row.low, row.high, row.value, "new")
        for key, row in fresh.items()
        if key not in old and not (absent and row.value is None)
    ]
    return [*(_compared(row, fresh.get(_key(row)), alike, absent) for row in bundled), *new]


def _compared(row: Result, again: Result | None, alike: bool, absent: bool) -> Compared:
    if again is None:
        return Compared(*_key(row), row.value, None, None, None, "unmeasured" if absent else "missing")
    if again.value is None and not alike and (row.value is not None or (absent and row.why != again.why)):
        return Compared(*_key(row), row.value, None, None, None, "unmeasured", (again.why or "not measured",))
    state, what = _state(_figures(row, absent), _figures(again, absent), again, alike)
    return Compared(*_key(row), row.value, again.low, again.high, again.value, state, what)


def _state(
    was: Mapping[str, object], now: Mapping[str, object], again: Result, alike: bool
) -> tuple[State, tuple[str, ...]]:
    if was == now:
        return "same", ()
    off = tuple(name for name in {**was, **now} if not _agree(was.get(name), now.get(name)))
    if not off:
        return "rounding", ()
    if alike:
        return "differs", off
    far = [name for name in off if name != "details"]
    if again.low is not None and again.high is not None:
        middle, reach = (again.low + again.high) / 2, (again.high - again.low) / 2
        far = [name for name in far if not _near(was.get(name), middle if name == "value" else now.get(name), reach)]
    return ("differs", tuple(far)) if far else ("chance", off)


def _figures(row: Result, absent: bool) -> dict[str, object]:
    """The fields that must be reproduced, by readable name."""
    apart = {"metric", "model", "set", "per_track", *(TEXTS if absent else ())}
    values: dict[str, object] = {item.name: getattr(row, item.name) for item in fields(row) if item.name not in apart}
    return values | {f"track {name}": value for name, value in row.per_track.items()}


def _agree(was: object, now: object) -> bool:
    """Recursive equality within rounding, also of the numbers in sentences."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        return was.keys() == now.keys() and all(_agree(was[name], now[name]) for name in was)
    if isinstance(was, (list, tuple)) and isinstance(now, (list, tuple)):
        return len(was) == len(now) and all(map(_agree, was, now))
    if isinstance(was, bool) or isinstance(now, bool):
        return was is now
    if isinstance(was, (int, float)) and isinstance(now, (int, float)):
        return math.isclose(was, now, rel_tol=ROUNDING, abs_tol=NOTHING)
    if isinstance(was, str) and isinstance(now, str) and was != now:
        numbers = [list(map(float, NUMBER.findall(text))) for text in (was, now)]
        return NUMBER.sub("#", was) == NUMBER.sub("#", now) and _agree(*numbers)
    return was == now


def _near(was: object, now: object, reach: float) -> bool:
    """Whether two floats differ by at most `reach`; False for `n`, an integer."""
    return isinstance(was, float) and isinstance(now, float) and abs(was - now) <= reach


def _key(row: Result) -> tuple[str, str, str]:
    return row.metric, row.model, row.set
