"""What a bench found: a line a method, in order, with how far seeds lie apart and what chance could have done."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from encore import stats
from encore.api import Result
from encore.bench.plan import Cell, Plan
from encore.metrics.summary import summary
from encore.runs import shapes
from encore.runs.metrics_json import NAME as METRICS
from encore.runs.metrics_json import read_metrics
from encore.runs.store import read_json

Rows = Mapping[tuple[str, str], Result]  # (metric, set) -> one model's row with a figure
REFERENCES = ("base", "gold", "gold2")


@dataclass(frozen=True)
class Column:
    """One figure of a line. `of` reads it from a model's rows; a KeyError says that there is none."""

    title: str
    of: Callable[[Rows], float]


def _value(metric: str, clips: str) -> Callable[[Rows], float]:
    def of(rows: Rows) -> float:
        value = rows[metric, clips].value
        assert value is not None  # rows without a figure are not among them
        return value

    return of


def _count(metric: str, clips: str) -> Callable[[Rows], float]:
    return lambda rows: round(_value(metric, clips)(rows) * rows[metric, clips].n)


def _lowest(rows: Rows) -> float:
    return min(value for value in rows["nll", "forget"].per_track.values() if value is not None)


COLUMNS = (
    Column("KL gold, forget", _value("kl_gold", "forget")),
    Column("forget NLL", _value("nll", "forget")),
    Column("lowest track", _lowest),
    Column("relearned", _value("relearn", "forget")),
    Column("retain NLL", _value("nll", "retain")),
    Column("holdout NLL", _value("nll", "holdout")),
    Column("replays, forget", _count("verbatim", "forget")),
    Column("replays, retain", _count("verbatim", "retain")),
    Column("AUC", _value("membership_auc", "forget")),
)
HEARD = ("fad", "tag_kl", "clap_score")  # how the names of rows begin that are through an embedder
COSTS = ("seconds", "peak GB")
ORDERED_BY = ("targets", "KL gold, forget", "relearned")  # the most targets, then the nearest to gold


@dataclass(frozen=True)
class Measured:
    """One cell that was measured.

    Args:
        rows: of the unlearned model. references: the same of base and the golds, by role.
        met, judged: targets that were reached, and how many could be judged.
        cost: `COSTS` -> figure, as far as the run tells.
    """

    cell: Cell
    rows: Rows
    references: Mapping[str, Rows]
    met: int
    judged: int
    cost: Mapping[str, float]

    def figures(self) -> dict[str, float]:
        """Title -> figure."""
        return _figures(self.rows) | {"targets": float(self.met)} | dict(self.cost)


@dataclass(frozen=True)
class Line:
    """A method over its seeds, or a reference.

    Args:
        figures: title -> its figure of every seed, in the order of `seeds`.
        p: what was tested -> the p of this method's tracks being like those of the first line.
    """

    name: str
    requests: int
    seeds: tuple[int, ...]
    figures: Mapping[str, tuple[float, ...]]
    judged: int = 0
    p: Mapping[str, float] = field(default_factory=dict)

    def median(self, title: str) -> float | None:
        values = self.figures.get(title)
        return statistics.median(values) if values else None

    def as_dict(self) -> dict[str, Any]:
        """As `leaderboard.json` keeps it."""
        return {
            "method": self.name, "requests": self.requests, "seeds": list(self.seeds), "targets_judged": self.judged,
            "figures": {
                title: {"median": statistics.median(v), "low": min(v), "high": max(v), "of_seeds": list(v)}
                for title, v in self.figures.items()
            },
            "p": dict(self.p),
        }  # fmt: skip


@dataclass(frozen=True)
class Leaderboard:
    """All of it.

    Args:
        references: base and golds. lines: methods from the first to the last.
        failed: cells that came to nothing -> the reason. titles: of the figures.
        tracks: how many the sets have. tested: title -> how many tracks its p rests on.
    """

    references: list[Line]
    lines: list[Line]
    failed: Mapping[str, str]
    titles: tuple[str, ...]
    tracks: Mapping[str, int]
    tested: Mapping[str, int]


def read_cell(out: Path, cell: Cell) -> Measured | None:
    """A cell's figures; None where it was not measured."""
    folder = out / cell.name
    if not (folder / METRICS).exists():
        return None
    results = read_metrics(folder / METRICS)
    met = [line.met for line in summary(results) if line.target and line.met is not None]
    return Measured(
        cell, _of_role(results, "unlearned"), {role: _of_role(results, role) for role in REFERENCES}, sum(met),
        len(met), _cost(folder, cell),
    )  # fmt: skip


def _of_role(results: Sequence[Result], role: str) -> Rows:
    return {(row.metric, row.set): row for row in results if row.model == role and row.value is not None}


def _figures(rows: Rows) -> dict[str, float]:
    found = {}
    for column in COLUMNS:
        try:
            found[column.title] = float(column.of(rows))
        except (KeyError, ValueError):  # not measured, or of no track
            continue
    for metric, clips in rows:
        if metric.startswith(HEARD) and clips != "holdout":
            found[metric if clips == "retain" else f"{metric}, {clips}"] = _value(metric, clips)(rows)
    return found


def _cost(folder: Path, cell: Cell) -> dict[str, float]:
    """Seconds of all requests together, and the largest peak of memory."""
    runs = [folder / str(number) for number in range(1, cell.requests + 1)] if cell.requests > 1 else [folder]
    told = [read_json(run / "run.json", shapes.Run) for run in runs]
    cost = {"seconds": float(sum(run.get("timings", {}).get("forget", 0.0) for run in told))}
    peaks = [run["cost"]["peak_bytes"] / 1e9 for run in told if run.get("cost", {}).get("peak_bytes")]
    return cost | ({"peak GB": max(peaks)} if peaks else {})


def leaderboard(plan: Plan, out: Path, failed: Mapping[Cell, str] | None = None) -> Leaderboard:
    """Read what was measured and put the methods in order: by targets reached, then by the distance to gold."""
    why = {cell.name: reason for cell, reason in (failed or {}).items()}
    groups: dict[tuple[str, int], list[Measured]] = {}
    for cell in plan.cells:
        found = None if cell.name in why else read_cell(out, cell)
        if found is not None:
            groups.setdefault((cell.method, cell.requests), []).append(found)
        else:
            why.setdefault(cell.name, "not run yet")
    lines = sorted((_line(name, n, runs) for (name, n), runs in groups.items()), key=_rank)
    first = next(iter(next(iter(groups.values()), [])), None)
    references = [
        Line(role, 1, (), {title: (value,) for title, value in _figures(rows).items()})
        for role, rows in (first.references.items() if first else ())
        if rows
    ]
    known = dict.fromkeys(title for line in lines for title in line.figures)
    fixed = ("targets", *(column.title for column in COLUMNS))
    heard = sorted(title for title in known if title.startswith(HEARD))
    titles = tuple(title for title in (*fixed, *heard, *COSTS) if title in known)
    sizes = (
        {name: first.rows["nll", name].n for name in ("forget", "retain") if ("nll", name) in first.rows}
        if first
        else {}
    )
    lines, tested = _tested(lines, groups)
    return Leaderboard(references, lines, why, titles, sizes, tested)


def _line(name: str, requests: int, runs: Sequence[Measured]) -> Line:
    found = [run.figures() for run in runs]
    titles = dict.fromkeys(title for figures in found for title in figures)
    return Line(
        name, requests, tuple(run.cell.seed for run in runs),
        {title: tuple(figures[title] for figures in found if title in figures) for title in titles},
        max(run.judged for run in runs),
    )  # fmt: skip


def _rank(line: Line) -> tuple[float, ...]:
    targets, kl, relearned = (line.median(title) for title in ORDERED_BY)
    return (
        -(targets or 0.0) / max(line.judged, 1),
        kl if kl is not None else float("inf"),
        -(relearned or 0.0),
        line.requests,
    )


TESTED = (("KL gold, forget", "kl_gold", "forget"), ("retain NLL", "nll", "retain"))


def _tested(
    lines: Sequence[Line], groups: Mapping[tuple[str, int], Sequence[Measured]]
) -> tuple[list[Line], dict[str, int]]:
    """Each line with p, and how many tracks a test had: a track's figure is its mean over seeds.

    Who is first was seen on these tracks, so that all pairs are tested together, not those with the first alone.
    """
    p: dict[tuple[str, int], dict[str, float]] = {key: {} for key in groups}
    tested = {}
    for title, metric, clips in TESTED:
        tracks = {key: _per_track(runs, metric, clips) for key, runs in groups.items()}
        keys = [(line.name, line.requests) for line in lines if tracks[line.name, line.requests]]
        if len(keys) < 2 or (lines[0].name, lines[0].requests) != keys[0]:
            continue
        common = sorted(set.intersection(*(set(tracks[key]) for key in keys)))
        if len(common) < 2:
            continue
        figures = [np.array([tracks[key][track] for track in common]) for key in keys]
        found = stats.max_t_test([one - other for one, other in combinations(figures, 2)])
        tested[title] = len(common)
        for key, value in zip(keys[1:], found, strict=False):  # the pairs with the first come first
            p[key][title] = float(value)
    return [replace(line, p=p[line.name, line.requests]) for line in lines], tested


def _per_track(runs: Sequence[Measured], metric: str, clips: str) -> dict[str, float]:
    """Track -> mean over the seeds that know it."""
    seen: dict[str, list[float]] = {}
    for run in runs:
        row = run.rows.get((metric, clips))
        for track, value in (row.per_track if row else {}).items():
            if value is not None:
                seen.setdefault(track, []).append(value)
    return {track: statistics.fmean(values) for track, values in seen.items()}
