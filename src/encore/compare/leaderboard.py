"""The leaderboard of a bench: methods in order, with the spread over seeds and permutation tests."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from encore import stats
from encore.api import Result
from encore.compare.plan import LEADERBOARD, Plan, Trial, label_of
from encore.errors import InputError
from encore.results.targets import SummaryRow, row_specs, spec_of, summary, targets_met
from encore.store import schemas
from encore.store.meta_json import RowTrust, read_trust
from encore.store.metrics_json import NAME as METRICS
from encore.store.metrics_json import read_metrics
from encore.store.run_folder import read_json

Rows = Mapping[tuple[str, str], Result]  # (metric, set) -> row of one model, with a value
REFERENCES = ("base", "gold", "gold2")


def _value(row: Result) -> float:
    assert row.value is not None  # `rows_of` has only rows with a value
    return row.value


def _count(row: Result) -> float:
    return round(_value(row) * row.n)


def _lowest(row: Result) -> float:
    return min(value for value in row.per_track.values() if value is not None)


@dataclass(frozen=True)
class Column:
    """A column of the table: `of` computes its value from the row of a metric on a set."""

    title: str
    metric: str
    set: str
    of: Callable[[Result], float] = _value


def columns() -> list[Column]:
    """The columns that the metrics declare, and the lowest NLL of a forget track."""
    result = []
    for spec in row_specs():
        if spec.column:
            counted = spec.judge in ("verbatim", "retain_verbatim")
            result.append(Column(spec.column, spec.name, spec.set, _count if counted else _value))
        if (spec.name, spec.set) == ("nll", "forget"):
            result.append(Column("lowest track", "nll", "forget", _lowest))
    return result


COSTS = ("seconds", "peak GB")
FORGET, RETAIN = "forget targets", "retain targets"
FLOOR_KL = 0.5  # relative to base's KL to gold: a model further away has not forgotten


@dataclass(frozen=True)
class Targets:
    """The targets that one model meets.

    Args:
        met: number of targets met, by title (`FORGET`, `RETAIN`).
        judged: number of targets judged, by title.
        forgets: whether it forgets at all, see `_forgets`; None if not measured.
    """

    met: Mapping[str, int] = field(default_factory=dict)
    judged: Mapping[str, int] = field(default_factory=dict)
    forgets: bool | None = None


@dataclass(frozen=True)
class Measured:
    """One model of a measured trial: the unlearned model or a reference.

    Args:
        rows: the model's rows with a value.
        shown: values by title that only this bench shows: of plugins' metrics and of the metrics that it names.
        targets: the targets it meets.
        cost: values by title (`COSTS`), as far as known.
        why: of an unlearned model without rows, the reason; else empty.
    """

    trial: Trial
    rows: Rows
    shown: Mapping[str, float] = field(default_factory=dict)
    targets: Targets = field(default_factory=Targets)
    cost: Mapping[str, float] = field(default_factory=dict)
    why: str = ""

    def figures(self) -> dict[str, float]:
        """Values by title."""
        met = {title: float(count) for title, count in self.targets.met.items()}
        return _figures(self.rows) | dict(self.shown) | met | dict(self.cost)


@dataclass(frozen=True)
class Line:
    """A method over its seeds, or a reference.

    Args:
        name: name of the method, with an @VARIANT if it has one; or role of the reference.
        requests: number of requests that the tracks are split into.
        seeds: seeds of its runs.
        figures: values by title, one per seed.
        options: options that differ from the method's defaults, as "key=value".
        judged: number of targets judged, by title (`FORGET`, `RETAIN`).
        forgets: whether it forgets with every seed; None if a seed was not measured and no other fails.
        p: p-values of the difference from the first line, by title.
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
    def is_measured(self) -> bool:
        """Whether it has figures other than its cost and counts of targets."""
        return not self.figures.keys() <= {FORGET, RETAIN, *COSTS}

    @property
    def label(self) -> str:
        """The name and the options that differ from the method's defaults."""
        return label_of(self.name, self.options)

    def median(self, title: str) -> float | None:
        values = self.figures.get(title)
        return statistics.median(values) if values else None

    def as_dict(self) -> dict[str, Any]:
        """The entry in `leaderboard.json`."""
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
    """The leaderboard.

    Args:
        references: base and golds, judged by the targets of the unlearned model.
        lines: methods, best first.
        failed: reasons by name of trials without results.
        titles: titles of the values.
        tracks: number of tracks by set.
        tested: number of tracks of each test, by title.
        trust: what `encore bench --meta` found of the rows, if it has run.
        trust_note: why that does not count any more, if so.
        unmeasured: reasons by name of trials whose model could not be measured.
    """

    references: list[Line]
    lines: list[Line]
    failed: Mapping[str, str]
    titles: tuple[str, ...]
    tracks: Mapping[str, int]
    tested: Mapping[str, int]
    trust: Sequence[RowTrust] = ()
    trust_note: str = ""
    unmeasured: Mapping[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """One sentence each on what the table does not show."""
        without = [f"{name} has no figures: {why}" for name, why in self.unmeasured.items()]
        return [*without, *([self.trust_note] if self.trust_note else [])]


def read_trial(
    out: Path, trial: Trial, named: Sequence[str] = (), ignored: Collection[tuple[str, str]] = ()
) -> dict[str, Measured]:
    """The models of a trial by role; empty if it is not measured.

    Args:
        named: metrics that the bench names; each has a column.
        ignored: rows, by metric and set, whose targets do not count.
    """
    folder = out / trial.name
    if not (folder / METRICS).exists():
        return {}
    results = read_metrics(folder / METRICS)
    models = {}
    for role in ("unlearned", *REFERENCES):
        rows = rows_of(results, role)
        if role == "unlearned" or rows:
            table = summary(_in_place_of_unlearned(results, role))
            costs = cost(folder, trial) if role == "unlearned" else {}
            counted = [line for line in table if (line.metric, line.set) not in ignored]
            why = "" if rows else _why_unmeasured(results, folder, trial)
            models[role] = Measured(trial, rows, _shown(table, rows, named), _targets(counted), costs, why)
    return models


def _why_unmeasured(results: Sequence[Result], folder: Path, trial: Trial) -> str:
    """Why the unlearned model of a trial has no figure."""
    collapsed = any(record["outcome"].get("collapsed") for record in _records(folder, trial) if "outcome" in record)
    reason = next((row.why for row in results if row.model == "unlearned" and row.why), "nothing was measured")
    return f"the model collapsed: {reason}" if collapsed else reason


def _in_place_of_unlearned(results: Sequence[Result], role: str) -> Sequence[Result]:
    """The rows with those of a role relabelled as the unlearned model's, to judge it by the same targets."""
    if role == "unlearned":
        return results
    others = [row for row in results if row.model != "unlearned"]
    return [*others, *(replace(row, model="unlearned") for row in others if row.model == role)]


def rows_of(results: Sequence[Result], role: str) -> Rows:
    """A model's rows with a value."""
    return {(row.metric, row.set): row for row in results if row.model == role and row.value is not None}


def _targets(table: Sequence[SummaryRow]) -> Targets:
    counts = targets_met(table)
    titles = {FORGET: counts["forget"], RETAIN: counts["retain"]}
    met, judged = ({title: count[i] for title, count in titles.items()} for i in (0, 1))
    return Targets(met, judged, _forgets(table))


def _forgets(table: Sequence[SummaryRow]) -> bool | None:
    """Whether no more forget tracks are continued verbatim than by gold, and KL to gold is at most half of base's.

    The verbatim test counts only if base fails it.
    """
    lines = {(line.metric, line.set): line for line in table}
    passed = []
    verbatim, kl = lines.get(("verbatim", "forget")), lines.get(("kl_gold", "forget"))
    if verbatim is not None:
        counts = {
            role: round((row.value or 0) * row.n) for role, row in verbatim.figures.items() if row.value is not None
        }
        fewest = counts.get("gold", 0)
        if "unlearned" in counts and counts.get("base", fewest + 1) > fewest:
            passed.append(counts["unlearned"] <= fewest)
    if kl is not None:
        values = {role: row.value for role, row in kl.figures.items() if row.value is not None}
        if "unlearned" in values and "base" in values:
            passed.append(values["unlearned"] <= FLOOR_KL * values["base"])
    return all(passed) if passed else None


def _shown(table: Sequence[SummaryRow], rows: Rows, named: Sequence[str]) -> dict[str, float]:
    """Values of plugins' metrics, and of the named metrics that have no column."""
    fixed = {column.metric for column in columns()}
    values = {}
    for line in table:
        row = rows.get((line.metric, line.set))
        if row is None or line.metric in fixed or _of_embedder(line.metric, line.set):
            continue
        if line.spec.column or any(f"{line.metric}_".startswith(f"{name}_") for name in named if name not in fixed):
            values[line.label] = _value(row)
    return values


def _of_embedder(metric: str, clips: str) -> bool:
    """Whether a row is of an embedder-based metric, whose rows have the embedder's name."""
    spec = spec_of(metric, clips)
    return spec is not None and spec.name.endswith("*")


def _figures(rows: Rows) -> dict[str, float]:
    values = {}
    for column in columns():
        try:
            values[column.title] = float(column.of(rows[column.metric, column.set]))
        except (KeyError, ValueError):  # not measured, or no tracks
            continue
    for (metric, clips), row in rows.items():
        if _of_embedder(metric, clips) and clips != "holdout":
            title = metric if clips == "retain" else f"{metric}, {clips}"
            values[title] = _value(row)
            if isinstance(bias := row.details.get("bias"), float):
                values[f"{title}, bias"] = bias
    return values


def cost(folder: Path, trial: Trial) -> dict[str, float]:
    """Total seconds of all requests, and the highest peak memory."""
    records = _records(folder, trial)
    seconds = float(sum(record.get("timings", {}).get("forget", 0.0) for record in records))
    peaks = [run["cost"]["peak_bytes"] / 1e9 for run in records if run.get("cost", {}).get("peak_bytes")]
    return {"seconds": seconds} | ({"peak GB": max(peaks)} if peaks else {})


def _records(folder: Path, trial: Trial) -> list[Any]:
    """`run.json` of each request."""
    runs = [folder / str(number) for number in range(1, trial.requests + 1)] if trial.requests > 1 else [folder]
    return [read_json(run / "run.json", schemas.Run) for run in runs]


def leaderboard(plan: Plan, out: Path, failed: Mapping[Trial, str] | None = None) -> Leaderboard:
    """Read the results on all tracks of the bench and order the methods; for lists, see the matrix.

    Methods that forget (`_forgets`) come first. Ties are broken by share of targets met (forget targets only, for those
    that do not forget), then by KL to gold, then by NLL after relearning. A row that `encore bench --meta` found not
    to tell models apart does not count in any of these, as long as the trials are measured with what it was found with.
    A method whose models could not be measured comes last.

    Args:
        failed: reasons by failed trial.

    Raises:
        InputError: `meta.json` or results can't be read.
    """
    why = {trial.name: reason for trial, reason in (failed or {}).items()}
    single = [
        out / trial.name for trial in plan.trials if trial.requests == 1 and not trial.list and trial.name not in why
    ]
    trust, trust_note = read_trust(out, [run for run in single if (run / METRICS).exists()])
    ignored = {(row.metric, row.set) for row in trust if row.trusted == "no"}
    trials: dict[tuple[str, int], list[dict[str, Measured]]] = {}
    for trial in plan.trials:
        if trial.list and (out / trial.name / METRICS).exists():
            continue
        models = {} if trial.list or trial.name in why else read_trial(out, trial, plan.metrics or (), ignored)
        if models:
            trials.setdefault((trial.method, trial.requests), []).append(models)
        else:
            why.setdefault(trial.name, "not run yet")
    groups = {key: [models["unlearned"] for models in runs] for key, runs in trials.items()}
    lines = sorted(
        (_line(name, runs, plan.methods[name], requests) for (name, requests), runs in groups.items()),
        key=partial(_rank, ignored=ignored),
    )
    first = next(iter(next(iter(trials.values()), [])), {})
    references = [replace(_line(role, [first[role]]), seeds=()) for role in REFERENCES if role in first]
    known = dict.fromkeys(title for line in lines for title in line.figures)
    fixed = (FORGET, RETAIN, *(column.title for column in columns()))
    others = sorted(title for title in known if title not in (*fixed, *COSTS))
    titles = tuple(title for title in (*fixed, *others, *COSTS) if title in known)
    rows = first["unlearned"].rows if first else {}
    sizes = {name: rows["nll", name].n for name in ("forget", "retain") if ("nll", name) in rows}
    lines, tested = _tested(lines, groups)
    unmeasured = {run.trial.name: run.why for runs in groups.values() for run in runs if run.why}
    return Leaderboard(references, lines, why, titles, sizes, tested, trust, trust_note, unmeasured)


def failures(plan: Plan, out: Path) -> dict[Trial, str]:
    """Why trials without results have none, as the last leaderboard has it."""
    try:
        reasons = read_json(out / LEADERBOARD).get("failed", {}) if (out / LEADERBOARD).exists() else {}
    except (InputError, AttributeError):
        return {}
    unmeasured = [trial for trial in plan.trials if not (out / trial.name / METRICS).exists()]
    return {trial: str(reasons[trial.name]) for trial in unmeasured if trial.name in reasons}


def _line(name: str, runs: Sequence[Measured], options: Sequence[str] = (), requests: int = 1) -> Line:
    values = [run.figures() for run in runs]
    titles = dict.fromkeys(title for figures in values for title in figures)
    forgets = [run.targets.forgets for run in runs]
    return Line(
        name, requests, tuple(run.trial.seed for run in runs),
        {title: tuple(figures[title] for figures in values if title in figures) for title in titles},
        tuple(options),
        {title: max(run.targets.judged.get(title, 0) for run in runs) for title in (FORGET, RETAIN)},
        False if False in forgets else None if None in forgets else True,
    )  # fmt: skip


def _rank(line: Line, ignored: Collection[tuple[str, str]] = ()) -> tuple[float, ...]:
    """Sort key; lower comes first."""
    counted = (FORGET, RETAIN) if line.forgets else (FORGET,)
    met = sum(line.median(title) or 0.0 for title in counted)
    kl = line.median("KL gold, forget") if ("kl_gold", "forget") not in ignored else None
    relearned = line.median("relearned") if ("relearn", "forget") not in ignored else None
    return (
        not line.is_measured,
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
    """The lines with p-values, and the number of tracks per test; a track's value is its mean over seeds.

    The order was chosen on the same tracks, so all pairs of methods are tested jointly, not only those with the first.
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
        values = stats.max_t_test([first - second for first, second in combinations(figures, 2)])
        tested[title] = len(common)
        for key, value in zip(keys[1:], values, strict=False):  # the pairs with the first come first
            p[key][title] = float(value)
    return [replace(line, p=p[line.key]) for line in lines], tested


def _per_track(runs: Sequence[Measured], metric: str, clips: str) -> dict[str, float]:
    """Mean over the seeds that have the track."""
    by_track: dict[str, list[float]] = {}
    for run in runs:
        row = run.rows.get((metric, clips))
        for track, value in (row.per_track if row else {}).items():
            if value is not None:
                by_track.setdefault(track, []).append(value)
    return {track: statistics.fmean(values) for track, values in by_track.items()}
