"""Comparison of runs: the differences of their values from the first run's, and whether chance explains them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encore import stats
from encore.api import Result
from encore.errors import InputError
from encore.report.tables import of_tracks
from encore.results.targets import SummaryRow, summary
from encore.store import schemas
from encore.store.evaluation_json import NAME as EVALUATION
from encore.store.metrics_json import NAME as METRICS
from encore.store.metrics_json import read_metrics
from encore.store.run_folder import complete_run, read_json

SAME, NOISE, DIFFERS, UNKNOWN = "same", "within noise", "differs", ""


@dataclass(frozen=True)
class Difference:
    """A run's value less the first run's.

    Args:
        value: None if either value is missing, or their definitions differ.
        low: lower end of the 95 % interval of the mean difference over common tracks.
        high: upper end.
        verdict: `SAME`, `NOISE`, `DIFFERS`, or `UNKNOWN` without intervals.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    verdict: str = UNKNOWN


@dataclass(frozen=True)
class ComparedRow:
    """One value of the unlearned models of several runs.

    Args:
        label: label of the row.
        figures: each run's row; None if it has no value.
        differences: differences of the other runs from the first.
    """

    label: str
    metric: str
    set: str
    figures: Sequence[Result | None]
    differences: Sequence[Difference]

    def as_dict(self) -> dict[str, Any]:
        """The entry in the output of `encore compare --json`."""
        return {
            "label": self.label, "metric": self.metric, "set": self.set,
            "values": [row.value if row else None for row in self.figures],
            "differences": [vars(difference) for difference in self.differences],
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """The comparison of several runs.

    Args:
        runs: folders of the runs.
        rows: values in the order of `encore eval`.
        doubts: reasons why values are not comparable, one sentence each.
    """

    runs: Sequence[Path]
    rows: Sequence[ComparedRow]
    doubts: Sequence[str]


def compare(runs: Sequence[Path]) -> Comparison:
    """Compare the labelled values (`encore.results.targets.summary`) of two or more runs.

    Raises:
        InputError: a run is not measured or can't be read.
    """
    tables = [_table(run) for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = []
    for key in keys:
        figures = [_figure(table.get(key)) for table in tables]
        label = next(table[key].label for table in tables if key in table)
        rows.append(ComparedRow(label, *key, figures, [_difference(figures[0], other) for other in figures[1:]]))
    rows = [row for row in rows if any(row.figures)]
    return Comparison(runs, rows, _doubts(runs, rows))


def _table(run: Path) -> dict[tuple[str, str], SummaryRow]:
    if not run.is_dir():
        raise InputError(f"there is no folder {run}", "`encore runs` lists the runs")
    if not (run / METRICS).exists():
        complete_run(run)
        raise InputError(f"{run} is not measured", f"measure it: encore eval {run}")
    return {(line.metric, line.set): line for line in summary(read_metrics(run / METRICS))}


def _figure(line: SummaryRow | None) -> Result | None:
    row = line.figures.get("unlearned") if line else None
    return row if row is not None and row.value is not None else None


def _difference(first: Result | None, second: Result | None) -> Difference:
    if first is None or second is None or first.value is None or second.value is None:
        return Difference(None)
    if first.version != second.version:
        return Difference(None)
    value = second.value - first.value
    if of_tracks(first):  # a count of tracks: per-track values are not what is averaged
        return Difference(value, verdict=SAME if value == 0 else _apart(first, second))
    pairs = [
        (before, after)
        for track, before in first.per_track.items()
        if before is not None and (after := second.per_track.get(track)) is not None
    ]
    if value == 0 and all(before == after for before, after in pairs):
        return Difference(0.0, 0.0, 0.0, SAME)
    bounds = (-1.0, 1.0) if first.unit in ("share", "AUC") else None
    changes = [after - before for before, after in pairs]
    interval = stats.bootstrap_interval(changes, seed=0, bounds=bounds) if pairs else None
    low, high = interval or (1.0, -1.0)
    slack = 0.01 * abs(value)
    if low - slack <= value <= high + slack:  # else the value is not the mean of the per-track values
        return Difference(value, low, high, NOISE if low <= 0 <= high else DIFFERS)
    return Difference(value, verdict=_apart(first, second))


def _apart(first: Result, second: Result) -> str:
    """Compare the intervals of both values; if they overlap, the difference may be chance."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return UNKNOWN
    return DIFFERS if second.low > first.high or first.low > second.high else NOISE


def _doubts(runs: Sequence[Path], rows: Sequence[ComparedRow]) -> list[str]:
    """Conditions beside the method that differ between the runs, one sentence each."""
    doubts = []
    conditions = [_conditions(run) for run in runs]
    for run, condition in zip(runs, conditions, strict=True):
        if condition is None:
            doubts.append(f"{run} has no request.json: its tracks and model are unknown")
    first = conditions[0] or {}
    for run, other in zip(runs[1:], conditions[1:], strict=True):
        doubts += [
            f"{runs[0]} and {run} have different {name}: values that depend on them can't be compared"
            for name, value in first.items()
            if other is not None and name in other and other[name] != value
        ]
    changed = [row.label for row in rows if len({result.version for result in row.figures if result is not None}) > 1]
    if changed:
        doubts.append(
            f"defined differently by the versions of Encore that measured them, so not compared: {'; '.join(changed)}"
        )
    return doubts


def _conditions(run: Path) -> dict[str, Any] | None:
    """What a run's values depend on beside its method; None without a request."""
    if not (run / "request.json").exists():
        return None
    request = read_json(run / "request.json", schemas.Request)
    conditions: dict[str, Any] = {"base model": request.get("model", {}).get("sha256")}
    for name in ("forget", "retain", "holdout"):
        conditions[f"{name} tracks or captions"] = {
            (entry.get("sha256"), *(entry.get("captions") or [entry.get("caption")])) for entry in request.get(name, ())
        }
    if (run / EVALUATION).exists():
        record = read_json(run / EVALUATION, schemas.Evaluation)
        models, embedders = record.get("models", {}), record.get("embedders", {})
        conditions |= {f"{role} models": models[role] for role in ("gold", "gold2") if role in models}
        conditions |= {f"versions of the embedder {name}": identity for name, identity in embedders.items()}
        conditions |= (
            {"numbers of generations per caption (--samples-per-caption)": record["samples_per_caption"]}
            if "samples_per_caption" in record
            else {}
        )
    return conditions
