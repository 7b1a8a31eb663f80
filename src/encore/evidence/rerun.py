"""Measure a run again, as it was measured, and hold the figures against those of the bundle."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from encore.api import Result
from encore.errors import GateError, InputError, NotCheckedError, ToleranceError

ROUNDING = 1e-4  # relative: what other processors and versions of libraries make of a figure
NOTHING = 1e-6  # difference that says nothing, of figures next to zero
SETTINGS: Mapping[str, type | tuple[type, ...]] = {  # of `evaluation.json` -> what they are
    "golds": dict, "seed": int, "embedder": str, "force": bool, "metrics": (list, type(None)), "full": bool,
    "models": dict, "notes": list,
}  # fmt: skip

State = Literal["same", "rounding", "chance", "unmeasured", "differs", "missing", "new"]
Tolerance = Literal["exact", "machine", "chance"]
ACCEPTED: Mapping[Tolerance, tuple[State, ...]] = {
    "exact": ("same",), "machine": ("same", "rounding"), "chance": ("same", "rounding", "chance"),
}  # fmt: skip
WRONG: tuple[State, ...] = ("differs", "missing", "new")
TEXTS = ("why", "note", "details")  # what a row says beside its figures
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Compared:
    """One row, as bundled and as measured again. What is bundled never judges itself: it may have been made up.

    Args:
        low, high: the interval as measured again.
        state: "same" to the last digit; "rounding": the same but for rounding; "chance": within the interval that was
            measured again; "unmeasured": it could not be measured here; or a mismatch: it differs, is missing now, or
            was not there before.
        what: of a row that is neither the same nor rounding, which of its figures differ, or why it was not measured.
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
    """Figures measured again.

    Args:
        rows: in the order of the bundle; what is new comes last.
        absent: set or role -> why it could not be measured.
        alike: the bundle says that it was measured with the hardware and versions at hand.
        hardware: what the bundle says that it was measured on.
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
    """All rows, measured with the settings in `evaluation.json`, against the bundled ones.

    Args:
        folder: a run's folder made of the bundle, that is written into: `request.json` gets the paths of today.
        how: what `evaluation.json` holds.
        run: the run's own folder. roots, catalogs: see `find_inputs`.
        catalog_is_in: the bundle names the tracks to retain and the held-out tracks.

    Raises:
        InputError: the settings can't be read, or the run's model is another one than was measured.
        NotCheckedError: nothing can be measured: the tracks to forget or the base model are not at hand.
    """
    from encore.evaluate.inputs import OtherWeightsError, from_run
    from encore.evaluate.parallel import threads_for_two
    from encore.evaluate.run import EvalConfig, evaluate_inputs
    from encore.evidence.inputs import as_kept, find_inputs
    from encore.evidence.redaction import public_rows
    from encore.store.environment import hardware, versions
    from encore.store.metrics_json import metrics_json
    from encore.store.model_name import model_sha256

    check_settings(how)
    inputs = find_inputs(folder, how, run=run, roots=roots, catalogs=catalogs)
    hint = "--root FOLDER names a folder to find tracks and models in, by hash; repeat it for more"
    if "forget" in inputs.absent:
        raise NotCheckedError(f"no figure could be measured again: {inputs.absent['forget']}", hint)
    golds: Any = inputs.golds
    try:
        subject = from_run(folder, golds=golds, seed=how["seed"], device=device, offline=offline, reporter=reporter)
    except OtherWeightsError:
        raise
    except InputError as error:
        raise NotCheckedError(f"no figure could be measured again: {error.message}", hint) from error
    for role in [role for role in ("gold", "gold2") if role in subject.models]:
        if role in how["models"] and model_sha256(subject.models[role]) != how["models"][role]:
            inputs.absent[role] = f"the {role} model at hand is not the one that was measured: its weights differ"
            del subject.models[role]
    asked = EvalConfig(
        tuple(how["metrics"]) if how["metrics"] is not None else None, how["full"], how["embedder"], how["seed"],
        how["force"], golds, False, how.get("draws", 1),
    )  # fmt: skip
    found = evaluate_inputs(subject, asked, offline=offline, reporter=reporter)
    models = list(subject.models.values())
    with threads_for_two(models):  # as many threads as `evaluation.json` was written with
        here = hardware(str(models[0].device))
    rows = as_kept(metrics_json(found)["results"])
    rows = public_rows(folder, rows, catalog=True)  # no folder of today
    if run is not None:
        rows = public_rows(run, rows, catalog=catalog_is_in)
    alike = not inputs.absent and (how.get("versions"), how.get("hardware")) == (versions(), here)
    compared = compare(bundled, [Result(**row) for row in as_kept(rows)], alike=alike, absent=bool(inputs.absent))
    told = how.get("hardware") if isinstance(how.get("hardware"), dict) else {}
    return Rerun(compared, inputs.absent, alike, str(told.get("name", "")) if told else "")


def check_settings(how: Any) -> None:
    """Check that `evaluation.json` says how the figures were measured.

    Raises:
        InputError: names the settings that are missing or of another kind.
    """
    if not isinstance(how, dict):
        raise InputError("the bundle does not say how its figures were measured: evaluation.json is not an object")
    wrong = [name for name, kind in SETTINGS.items() if name not in how or not isinstance(how[name], kind)]
    wrong += [name for name in ("seed", "draws") if type(how.get(name, 1)) is not int and name not in wrong]
    if not wrong:
        wrong += [name for name in ("seed",) if how[name] < 0] + [name for name in ("draws",) if how.get(name, 1) < 1]
        wrong += [name for name in ("metrics", "notes") if not all(isinstance(item, str) for item in how[name] or ())]
        wrong += [name for name in ("golds", "models") if not all(isinstance(i, str) for i in how[name].values())]
    if wrong:
        raise InputError(
            f"the bundle does not say how its figures were measured: {' and '.join(wrong)} missing or of another kind"
        )
    if how["golds"].keys() - {"gold", "gold2"}:  # else another model could be measured in the place of the run's
        raise InputError(f"the bundle names a gold for {' and '.join(sorted(how['golds'].keys() - {'gold', 'gold2'}))}")


def check_rerun(found: Rerun, tolerance: Tolerance = "machine") -> None:
    """The gate on figures that were measured again.

    Raises:
        GateError: one of them does not come out again.
        ToleranceError: all agree, some less closely than `tolerance`.
        NotCheckedError: some could not be measured.
    """
    rows = found.rows
    if wrong := [row for row in rows if row.state in WRONG]:
        raise GateError(
            f"{len(wrong)} of {len(rows)} figures do not come out again: {_named(wrong)}",
            "compare the versions in run.json with `encore doctor`; other versions may give other figures",
        )
    accepted = ACCEPTED[tolerance]
    loose = [row for row in rows if row.state not in (*accepted, "unmeasured")]
    unmeasured = [row for row in rows if row.state == "unmeasured"]
    beside = f"; {len(unmeasured)} could not be measured" if unmeasured else ""
    if loose:
        on = f"the bundle says that it was measured on {found.hardware!r}; " if found.hardware else ""
        raise ToleranceError(
            f"{tally(found)}{beside}: {_named(loose)}",
            f"{on}what differs by chance there is accepted with --tolerance chance" if tolerance == "machine" else
            "--tolerance machine accepts rounding, --tolerance chance what lies within the intervals",
        )  # fmt: skip
    if unmeasured:
        why = "; ".join(dict.fromkeys([*found.absent.values(), *(row.what[0] for row in unmeasured if row.what)]))
        raise NotCheckedError(
            f"{len(unmeasured)} of {len(rows)} figures could not be measured ({why}); {tally(found)}",
            "--root FOLDER finds tracks and models by hash, --catalog FILE captions",
        )


def tally(found: Rerun) -> str:
    """How closely figures came out again: "57 to the digit, 3 but for rounding, 22 only within chance"."""
    counts = {"to the digit": "same", "but for rounding": "rounding", "only within chance": "chance"}
    parts = [f"{found.count(state)} {words}" for words, state in counts.items() if found.count(state)]  # type: ignore[arg-type]
    return ", ".join(parts) or "none measured"


def _named(rows: Sequence[Compared]) -> str:
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return ", ".join(f"{row.metric} ({row.model}, {row.set})" for row in rows[:5]) + more


def compare(bundled: Sequence[Result], again: Sequence[Result], *, alike: bool, absent: bool = False) -> list[Compared]:
    """Row by row, in the order of the bundle; what is new comes last.

    Everything in a row must come out again but for rounding: value, interval, n, tracks, sentences and details. What
    does not is "chance" where the value lies in the interval measured now, no end of the interval and no track's figure
    is further from the one measured now than half of that interval, and only details differ beside; else it differs.

    Args:
        alike: the bundle says that it was measured on this hardware with these versions: chance is then no excuse. What
            a bundle says of itself can only make the comparison stricter.
        absent: some tracks or models are not at hand: what could not be measured for that reason is no mismatch.
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
    """What must come out again, by a name that a person reads."""
    apart = {"metric", "model", "set", "per_track", *(TEXTS if absent else ())}
    told: dict[str, object] = {item.name: getattr(row, item.name) for item in fields(row) if item.name not in apart}
    return told | {f"track {name}": figure for name, figure in row.per_track.items()}


def _agree(was: object, now: object) -> bool:
    """Equal but for rounding, all the way down; also the numbers in sentences."""
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
    """Whether two figures, which are floats where `n` is not, are no further apart than that."""
    return isinstance(was, float) and isinstance(now, float) and abs(was - now) <= reach


def _key(row: Result) -> tuple[str, str, str]:
    return row.metric, row.model, row.set
