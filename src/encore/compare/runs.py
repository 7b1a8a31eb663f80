"""Runs side by side: how far each figure of one is from the first's, and whether that is more than chance."""

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
from encore.store.run_folder import read_json

SAME, NOISE, DIFFERS, UNKNOWN = "same", "within noise", "differs", ""


@dataclass(frozen=True)
class Difference:
    """A figure of another run less the first's.

    Args:
        value: None where one of the two has no figure, or their definitions differ.
        low: of the 95 % interval of the mean difference over the tracks that both measured.
        high: of the same.
        said: `SAME`, `NOISE`, `DIFFERS`, or `UNKNOWN` where nothing tells how much is chance.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    said: str = UNKNOWN


@dataclass(frozen=True)
class ComparedRow:
    """One figure of the unlearned models of several runs.

    Args:
        label: what a person calls it.
        metric: of `metrics.json`.
        set: of tracks.
        figures: of each run, in their order; None where it has none.
        differences: of each run but the first from the first.
    """

    label: str
    metric: str
    set: str
    figures: Sequence[Result | None]
    differences: Sequence[Difference]

    def as_dict(self) -> dict[str, Any]:
        """As `encore compare --json` prints it."""
        return {
            "label": self.label, "metric": self.metric, "set": self.set,
            "values": [row.value if row else None for row in self.figures],
            "differences": [vars(one) for one in self.differences],
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Several runs.

    Args:
        runs: their folders.
        rows: in the order of `encore eval`.
        doubts: what makes figures of these runs incomparable, a sentence each.
    """

    runs: Sequence[Path]
    rows: Sequence[ComparedRow]
    doubts: Sequence[str]


def compare(runs: Sequence[Path]) -> Comparison:
    """Every figure that a decision rests on, of two runs or more.

    Raises:
        InputError: one was not measured, or can't be read.
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
        raise InputError(f"there is no folder {run}", "`encore runs` lists the runs that there are")
    if not (run / METRICS).exists():
        raise InputError(f"{run} has no figures to compare", f"measure it: encore eval {run}")
    return {(line.metric, line.set): line for line in summary(read_metrics(run / METRICS))}


def _figure(line: SummaryRow | None) -> Result | None:
    row = line.figures.get("unlearned") if line else None
    return row if row is not None and row.value is not None else None


def _difference(first: Result | None, other: Result | None) -> Difference:
    if first is None or other is None or first.value is None or other.value is None:
        return Difference(None)
    if first.version != other.version:
        return Difference(None)
    value = other.value - first.value
    if of_tracks(first):  # how many tracks passed a bar: what each came to, is not what is counted
        return Difference(value, said=SAME if value == 0 else _apart(first, other))
    pairs = [
        (before, after)
        for track, before in first.per_track.items()
        if before is not None and (after := other.per_track.get(track)) is not None
    ]
    if value == 0 and all(before == after for before, after in pairs):
        return Difference(0.0, 0.0, 0.0, SAME)
    bounds = (-1.0, 1.0) if first.unit in ("share", "AUC") else None
    apart = [after - before for before, after in pairs]
    interval = stats.bootstrap_interval(apart, seed=0, bounds=bounds) if pairs else None
    low, high = interval or (1.0, -1.0)
    slack = 0.01 * abs(value)
    if low - slack <= value <= high + slack:  # else a track's figure is not what the figure is the mean of
        return Difference(value, low, high, NOISE if low <= 0 <= high else DIFFERS)
    return Difference(value, said=_apart(first, other))


def _apart(first: Result, other: Result) -> str:
    """By the intervals of the two figures; where they overlap, the difference may be chance."""
    if first.low is None or first.high is None or other.low is None or other.high is None:
        return UNKNOWN
    return DIFFERS if other.low > first.high or first.low > other.high else NOISE


def _doubts(runs: Sequence[Path], rows: Sequence[ComparedRow]) -> list[str]:
    """What figures depend on beside the method, where it is not the same in all runs; a sentence each."""
    found = []
    conditions = [_conditions(run) for run in runs]
    for run, own in zip(runs, conditions, strict=True):
        if own is None:
            found.append(f"{run} has no request.json: nothing says what its figures are of")
    first = conditions[0] or {}
    for run, other in zip(runs[1:], conditions[1:], strict=True):
        found += [
            f"{runs[0]} and {run} have different {what}: figures that depend on them can't be compared"
            for what, own in first.items()
            if other is not None and what in other and other[what] != own
        ]
    changed = [row.label for row in rows if len({one.version for one in row.figures if one is not None}) > 1]
    if changed:
        found.append(
            f"defined differently by the versions of Encore that measured them, so not compared: {'; '.join(changed)}"
        )
    return found


def _conditions(run: Path) -> dict[str, Any] | None:
    """What a run's figures depend on beside its method; None where it has no request."""
    if not (run / "request.json").exists():
        return None
    asked = read_json(run / "request.json", schemas.Request)
    found: dict[str, Any] = {"base model": asked.get("model", {}).get("sha256")}
    for name in ("forget", "retain", "holdout"):
        found[f"{name} tracks or captions"] = {
            (entry.get("sha256"), *(entry.get("captions") or [entry.get("caption")])) for entry in asked.get(name, ())
        }
    if (run / EVALUATION).exists():
        how = read_json(run / EVALUATION, schemas.Evaluation)
        models = how.get("models", {})
        found |= {f"{role} models": models[role] for role in ("gold", "gold2") if role in models}
        found |= {f"versions of the embedder {name}": identity for name, identity in how.get("embedders", {}).items()}
        found |= {"numbers of generations per caption (--draws)": how["draws"]} if "draws" in how else {}
    return found
