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
from encore.compare.plan import Plan, Trial, label_of
from encore.results.targets import SummaryRow, row_specs, spec_of, summary, targets_met
from encore.store import schemas
from encore.store.metrics_json import NAME as METRICS
from encore.store.metrics_json import read_metrics
from encore.store.run_folder import read_json

Rows = Mapping[tuple[str, str], Result]  # (metric, set) -> one model's row with a figure
REFERENCES = ("base", "gold", "gold2")


def _value(row: Result) -> float:
    assert row.value is not None  # rows without a figure are not among them
    return row.value


def _count(row: Result) -> float:
    return round(_value(row) * row.n)


def _lowest(row: Result) -> float:
    return min(value for value in row.per_track.values() if value is not None)


@dataclass(frozen=True)
class Column:
    """One figure of a line: `of` reads it from the row of a metric on a set of tracks."""

    title: str
    metric: str
    set: str
    of: Callable[[Result], float] = _value


def columns() -> list[Column]:
    """The columns that metrics declare for their rows, and the lowest NLL of a forget track."""
    found = []
    for spec in row_specs():
        if spec.column:
            counted = spec.judge in ("verbatim", "retain_verbatim")
            found.append(Column(spec.column, spec.name, spec.set, _count if counted else _value))
        if (spec.name, spec.set) == ("nll", "forget"):
            found.append(Column("lowest track", "nll", "forget", _lowest))
    return found


COSTS = ("seconds", "peak GB")
FORGET, KEEP = "forget targets", "keep targets"
FLOOR_KL = 0.5  # of base's KL to gold: a model that is not even half the way to gold has not forgotten


@dataclass(frozen=True)
class Targets:
    """The targets that one model reaches.

    Args:
        met: title (`FORGET`, `KEEP`) -> how many it reaches.
        judged: title -> how many could be judged.
        forgets: whether it is above the floor of forgetting; None where nothing measured it.
    """

    met: Mapping[str, int] = field(default_factory=dict)
    judged: Mapping[str, int] = field(default_factory=dict)
    forgets: bool | None = None


@dataclass(frozen=True)
class Measured:
    """One model of a cell that was measured: the unlearned one, or one that it is compared with.

    Args:
        cell: where it was measured.
        rows: the model's rows with a figure.
        shown: title -> figure of what only this bench shows: metrics of plugins, and those that it names.
        targets: what it reaches.
        cost: `COSTS` -> figure, as far as the run tells.
    """

    cell: Trial
    rows: Rows
    shown: Mapping[str, float] = field(default_factory=dict)
    targets: Targets = field(default_factory=Targets)
    cost: Mapping[str, float] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """Title -> figure."""
        met = {title: float(count) for title, count in self.targets.met.items()}
        return _figures(self.rows) | dict(self.shown) | met | dict(self.cost)


@dataclass(frozen=True)
class Line:
    """A method over its seeds, or a reference.

    Args:
        name: of the method, with the variant's after an @; or the reference's role.
        requests: how many the tracks came in.
        seeds: of its runs.
        figures: title -> its figure of every seed, in the order of `seeds`.
        options: those that were given in place of the method's defaults, as "key=value".
        judged: `FORGET`, `KEEP` -> how many targets could be judged.
        forgets: whether it is above the floor of forgetting with every seed; None where a seed's was not measured and
            no other is below.
        p: what was tested -> the p of this method's tracks being like those of the first line.
    """

    name: str
    requests: int
    seeds: tuple[int, ...]
    figures: Mapping[str, tuple[float, ...]]
    options: tuple[str, ...] = ()
    judged: Mapping[str, int] = field(default_factory=dict)
    forgets: bool | None = None
    p: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        return self.name, self.requests

    @property
    def label(self) -> str:
        """The name with what was given in place of the method's defaults."""
        return label_of(self.name, self.options)

    def median(self, title: str) -> float | None:
        values = self.figures.get(title)
        return statistics.median(values) if values else None

    def as_dict(self) -> dict[str, Any]:
        """As `leaderboard.json` keeps it."""
        return {
            "method": self.name, "label": self.label, "options": list(self.options), "requests": self.requests,
            "seeds": list(self.seeds), "forgets": self.forgets, "targets_judged": dict(self.judged),
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
        references: base and golds, judged as if each were what a method had left.
        lines: methods from the first to the last.
        failed: cells that came to nothing -> the reason.
        titles: of the figures.
        tracks: how many the sets have.
        tested: title -> how many tracks its p rests on.
    """

    references: list[Line]
    lines: list[Line]
    failed: Mapping[str, str]
    titles: tuple[str, ...]
    tracks: Mapping[str, int]
    tested: Mapping[str, int]


def read_cell(out: Path, cell: Trial, named: Sequence[str] = ()) -> dict[str, Measured]:
    """Every model that a cell measured, by role; empty where it was not measured.

    Args:
        named: the metrics that the bench names: each has a column.
    """
    folder = out / cell.name
    if not (folder / METRICS).exists():
        return {}
    results = read_metrics(folder / METRICS)
    found = {}
    for role in ("unlearned", *REFERENCES):
        rows = rows_of(results, role)
        if role == "unlearned" or rows:
            table = summary(_in_place_of_unlearned(results, role))
            spent = cost(folder, cell) if role == "unlearned" else {}
            found[role] = Measured(cell, rows, _shown(table, rows, named), _targets(table), spent)
    return found


def _in_place_of_unlearned(results: Sequence[Result], role: str) -> Sequence[Result]:
    """The rows, with those of a model also as the unlearned one's, so that it is judged as that is."""
    if role == "unlearned":
        return results
    others = [row for row in results if row.model != "unlearned"]
    return [*others, *(replace(row, model="unlearned") for row in others if row.model == role)]


def rows_of(results: Sequence[Result], role: str) -> Rows:
    """A model's rows with a figure."""
    return {(row.metric, row.set): row for row in results if row.model == role and row.value is not None}


def _targets(table: Sequence[SummaryRow]) -> Targets:
    counts = targets_met(table)
    titles = {FORGET: counts["forget"], KEEP: counts["keep"]}
    met, judged = ({title: count[i] for title, count in titles.items()} for i in (0, 1))
    return Targets(met, judged, _forgets(table))


def _forgets(table: Sequence[SummaryRow]) -> bool | None:
    """The floor: no more forget tracks replay than gold's, and the model is at least half the way from base to gold.

    A test that base passes too shows nothing.
    """
    lines = {(line.metric, line.set): line for line in table}
    found = []
    replays, kl = lines.get(("verbatim", "forget")), lines.get(("kl_gold", "forget"))
    if replays is not None:
        counts = {
            role: round((row.value or 0) * row.n) for role, row in replays.figures.items() if row.value is not None
        }
        fewest = counts.get("gold", 0)
        if "unlearned" in counts and counts.get("base", fewest + 1) > fewest:
            found.append(counts["unlearned"] <= fewest)
    if kl is not None:
        values = {role: row.value for role, row in kl.figures.items() if row.value is not None}
        if "unlearned" in values and "base" in values:
            found.append(values["unlearned"] <= FLOOR_KL * values["base"])
    return all(found) if found else None


def _shown(table: Sequence[SummaryRow], rows: Rows, named: Sequence[str]) -> dict[str, float]:
    """What only this bench shows: rows of plugins' metrics, and of those it names that have no column."""
    fixed = {column.metric for column in columns()}
    found = {}
    for line in table:
        row = rows.get((line.metric, line.set))
        if row is None or line.metric in fixed or _through_embedder(line.metric, line.set):
            continue
        if line.spec.column or any(f"{line.metric}_".startswith(f"{name}_") for name in named if name not in fixed):
            found[line.label] = _value(row)
    return found


def _through_embedder(metric: str, clips: str) -> bool:
    """Whether a row is of a metric through embedders, whose rows have the embedder's name."""
    spec = spec_of(metric, clips)
    return spec is not None and spec.name.endswith("*")


def _figures(rows: Rows) -> dict[str, float]:
    found = {}
    for column in columns():
        try:
            found[column.title] = float(column.of(rows[column.metric, column.set]))
        except (KeyError, ValueError):  # not measured, or of no track
            continue
    for (metric, clips), row in rows.items():
        if _through_embedder(metric, clips) and clips != "holdout":
            title = metric if clips == "retain" else f"{metric}, {clips}"
            found[title] = _value(row)
            if isinstance(bias := row.details.get("bias"), float):
                found[f"{title}, bias"] = bias
    return found


def cost(folder: Path, cell: Trial) -> dict[str, float]:
    """Seconds of all requests together, and the largest peak of memory."""
    runs = [folder / str(number) for number in range(1, cell.requests + 1)] if cell.requests > 1 else [folder]
    told = [read_json(run / "run.json", schemas.Run) for run in runs]
    spent = {"seconds": float(sum(run.get("timings", {}).get("forget", 0.0) for run in told))}
    peaks = [run["cost"]["peak_bytes"] / 1e9 for run in told if run.get("cost", {}).get("peak_bytes")]
    return spent | ({"peak GB": max(peaks)} if peaks else {})


def leaderboard(plan: Plan, out: Path, failed: Mapping[Trial, str] | None = None) -> Leaderboard:
    """Read what was measured of all tracks of the bench and put the methods in order; lists are the matrix's.

    First come those above the floor of forgetting, then, among equals, those that reach the greater share of targets
    (of forgetting alone, below the floor), that are nearer to gold, and that are harder to bring back.
    """
    why = {cell.name: reason for cell, reason in (failed or {}).items()}
    cells: dict[tuple[str, int], list[dict[str, Measured]]] = {}
    for cell in plan.cells:
        if cell.list and (out / cell.name / METRICS).exists():
            continue
        found = {} if cell.list or cell.name in why else read_cell(out, cell, plan.metrics or ())
        if found:
            cells.setdefault((cell.method, cell.requests), []).append(found)
        else:
            why.setdefault(cell.name, "not run yet")
    groups = {key: [found["unlearned"] for found in runs] for key, runs in cells.items()}
    lines = sorted(
        (_line(name, runs, plan.methods[name], requests) for (name, requests), runs in groups.items()), key=_rank
    )
    first = next(iter(next(iter(cells.values()), [])), {})
    references = [replace(_line(role, [first[role]]), seeds=()) for role in REFERENCES if role in first]
    known = dict.fromkeys(title for line in lines for title in line.figures)
    fixed = (FORGET, KEEP, *(column.title for column in columns()))
    others = sorted(title for title in known if title not in (*fixed, *COSTS))
    titles = tuple(title for title in (*fixed, *others, *COSTS) if title in known)
    rows = first["unlearned"].rows if first else {}
    sizes = {name: rows["nll", name].n for name in ("forget", "retain") if ("nll", name) in rows}
    lines, tested = _tested(lines, groups)
    return Leaderboard(references, lines, why, titles, sizes, tested)


def _line(name: str, runs: Sequence[Measured], options: Sequence[str] = (), requests: int = 1) -> Line:
    found = [run.figures() for run in runs]
    titles = dict.fromkeys(title for figures in found for title in figures)
    above = [run.targets.forgets for run in runs]
    return Line(
        name, requests, tuple(run.cell.seed for run in runs),
        {title: tuple(figures[title] for figures in found if title in figures) for title in titles},
        tuple(options),
        {title: max(run.targets.judged.get(title, 0) for run in runs) for title in (FORGET, KEEP)},
        False if False in above else None if None in above else True,
    )  # fmt: skip


def _rank(line: Line) -> tuple[float, ...]:
    """Lower comes first."""
    counted = (FORGET, KEEP) if line.forgets else (FORGET,)
    met = sum(line.median(title) or 0.0 for title in counted)
    kl, relearned = line.median("KL gold, forget"), line.median("relearned")
    return (
        {True: 0, None: 1, False: 2}[line.forgets],
        -met / max(sum(line.judged.get(title, 0) for title in counted), 1),
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
        keys = [line.key for line in lines if tracks[line.key]]
        if len(keys) < 2 or lines[0].key != keys[0]:
            continue
        common = sorted(set.intersection(*(set(tracks[key]) for key in keys)))
        if len(common) < 2:
            continue
        figures = [np.array([tracks[key][track] for track in common]) for key in keys]
        found = stats.max_t_test([one - other for one, other in combinations(figures, 2)])
        tested[title] = len(common)
        for key, value in zip(keys[1:], found, strict=False):  # the pairs with the first come first
            p[key][title] = float(value)
    return [replace(line, p=p[line.key]) for line in lines], tested


def _per_track(runs: Sequence[Measured], metric: str, clips: str) -> dict[str, float]:
    """Track -> mean over the seeds that know it."""
    seen: dict[str, list[float]] = {}
    for run in runs:
        row = run.rows.get((metric, clips))
        for track, value in (row.per_track if row else {}).items():
            if value is not None:
                seen.setdefault(track, []).append(value)
    return {track: statistics.fmean(values) for track, values in seen.items()}
