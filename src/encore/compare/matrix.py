"""The matrix of a bench: acceptance criteria of each method on each forget list, met or missed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from encore import stats
from encore.compare.leaderboard import REFERENCES, Rows, cost, rows_of
from encore.compare.plan import Plan, Trial, gold_note, label_of, list_tracks
from encore.compare.sequential import forgotten
from encore.data.splits import Tracks
from encore.memorised import HOLDOUT_DRIFT, MEAN_RISE
from encore.metrics.memorization.verbatim import MATCH
from encore.results.rules import TRACK_RANGE
from encore.store.metrics_json import NAME as METRICS
from encore.store.metrics_json import read_metrics

METRICS_READ = (
    "nll", "kl_gold", "verbatim", "verbatim_caption", "membership_auc", "clap_score", "tag_kl", "mmd", "sampling_noise",
    "relearn_fast", "relearn",
)  # fmt: skip
AUC_TRACKS = 8  # an AUC of fewer tracks is not judged
SECONDS, SECONDS_TRACKS = 60.0, 8  # maximum time to forget at most so many tracks
ROUNDING = 1e-9


@dataclass(frozen=True)
class Figure:
    """A value and its bounds; None is no bound, and without bounds it is not judged."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def met(self) -> bool | None:
        if self.low is None and self.high is None:
            return None
        low, high = (
            (-float("inf") if self.low is None else self.low),
            (float("inf") if self.high is None else self.high),
        )
        return low - ROUNDING <= self.value <= high + ROUNDING


@dataclass(frozen=True)
class Measurements:
    """The measurements of one trial.

    Args:
        models: rows by role.
        tracks: number of forget tracks.
        pieces: forget tracks of each request, if there are several.
        seconds: time to forget.
    """

    models: Mapping[str, Rows]
    tracks: int
    pieces: Sequence[Collection[str]]
    seconds: float

    def value(self, role: str, metric: str, clips: str) -> float:
        value = self.models[role][metric, clips].value
        assert value is not None  # `rows_of` has only rows with a value
        return value

    def each(self, role: str, metric: str, clips: str) -> dict[str, float]:
        """Values by track."""
        per_track = self.models[role][metric, clips].per_track
        return {track: value for track, value in per_track.items() if value is not None}

    def optional(self, role: str, metric: str, clips: str) -> float | None:
        return self.value(role, metric, clips) if (metric, clips) in self.models.get(role, {}) else None


# --------------------------------------------------------------------------------------------------------- the rows
# Each raises KeyError if a value that it needs was not measured.


def _kl(clips: str, slack: float, trial: Measurements) -> Figure:
    noise = trial.optional("gold2", "kl_gold", clips)
    return Figure(trial.value("unlearned", "kl_gold", clips), high=None if noise is None else slack * noise)


def _request_kl(trial: Measurements) -> Figure:
    """KL / noise on a request's tracks, of the worst request."""
    if not trial.pieces:
        raise KeyError("requests")
    kl, noise = (trial.each(role, "kl_gold", "forget") for role in ("unlearned", "gold2"))
    shares = [sum(kl[track] for track in piece) / sum(noise[track] for track in piece) for piece in trial.pieces]
    return Figure(max(shares), high=1.25)


def _forget_nll(trial: Measurements) -> Figure:
    gold, nll = trial.optional("gold", "nll", "forget"), trial.value("unlearned", "nll", "forget")
    return Figure(nll) if gold is None else Figure(nll, 0.9 * gold, 1.1 * gold)


def _track_ratio(extreme: Callable[[Sequence[float]], float], trial: Measurements) -> Figure:
    nll, gold = (trial.each(role, "nll", "forget") for role in ("unlearned", "gold"))
    return Figure(extreme([nll[track] / gold[track] for track in nll]), *TRACK_RANGE)


def _relearned(metric: str, trial: Measurements) -> Figure:
    return Figure(trial.value("unlearned", metric, "forget") / trial.value("gold", metric, "forget"), low=0.85)


def _retain_change(extreme: Callable[[Sequence[float]], float], high: float | None, trial: Measurements) -> Figure:
    nll, base = (trial.each(role, "nll_memorised", "retain") for role in ("unlearned", "base"))
    return Figure(extreme([nll[track] - base[track] for track in base]), high=high)


def _retain_verbatim(metric: str, trial: Measurements) -> Figure:
    unlearned, base = (
        sum(share >= MATCH for share in trial.each(role, metric, "retain").values()) for role in ("unlearned", "base")
    )
    return Figure(unlearned, low=base - 1)


def _embedder_metric(start: str, trial: Measurements) -> str:
    """The first metric with this prefix whose sampling noise was measured."""
    rows = trial.models["base"]
    names = [name for name, clips in trial.models["unlearned"] if clips == "retain" and name.startswith(start)]
    return next((name for name in names if (f"sampling_{name}", "retain") in rows), start)


def _clap_change(trial: Measurements) -> Figure:
    """Bounded by base's change with another seed, at the far end of its interval."""
    metric = _embedder_metric("clap_score", trial)
    first, second = trial.each("base", metric, "retain"), trial.each("base", f"sampling_{metric}", "retain")
    interval = stats.bootstrap_interval([second[track] - first[track] for track in first], seed=0)
    change = trial.value("unlearned", metric, "retain") - trial.value("base", metric, "retain")
    return Figure(change, low=None if interval is None else -max(map(abs, interval)))


def _to_base(start: str, trial: Measurements) -> Figure:
    """Distance to base's generations, bounded by that of base with another seed, at the upper end of its interval."""
    metric = _embedder_metric(start, trial)
    noise = trial.models["base"][f"sampling_{metric}", "retain"]
    return Figure(trial.value("unlearned", metric, "retain"), high=noise.value if noise.high is None else noise.high)


def _change(clips: str, bound: float | None, trial: Measurements) -> Figure:
    change = trial.value("unlearned", "nll", clips) - trial.value("base", "nll", clips)
    return Figure(change) if bound is None else Figure(change, -bound, bound)


def _auc(trial: Measurements) -> Figure:
    value, gold = (
        trial.value("unlearned", "membership_auc", "forget"),
        trial.optional("gold", "membership_auc", "forget"),
    )
    if trial.tracks < AUC_TRACKS or gold is None:
        return Figure(value)
    slack = abs(gold - 0.5) + 0.1
    return Figure(value, 0.5 - slack, 0.5 + slack)


def _seconds(trial: Measurements) -> Figure:
    return Figure(trial.seconds, high=SECONDS if trial.tracks <= SECONDS_TRACKS and not trial.pieces else None)


ROWS: dict[str, Callable[[Measurements], Figure]] = {
    "KL(gold ‖ model), forget: ≤ 1.25 × noise": partial(_kl, "forget", 1.25),
    "KL(gold ‖ model), worst request / noise": _request_kl,
    "KL(gold ‖ model), retain: ≤ 2 × noise": partial(_kl, "retain", 2.0),
    "forget NLL: within 10 % of gold's": _forget_nll,
    "lowest track NLL / gold's": partial(_track_ratio, min),
    "highest track NLL / gold's": partial(_track_ratio, max),
    "relearned / gold's, lr 2e-4": partial(_relearned, "relearn"),
    "relearned / gold's, lr 1e-3": partial(_relearned, "relearn_fast"),
    "retain NLL, change": partial(_change, "retain", None),
    "memorised retain, change of NLL": partial(_retain_change, statistics.fmean, MEAN_RISE),
    "memorised retain, change of NLL, worst track": partial(_retain_change, max, None),
    "retain, verbatim from 1 s: ≥ base - 1": partial(_retain_verbatim, "verbatim"),
    "retain, verbatim from captions: ≥ base - 1": partial(_retain_verbatim, "verbatim_caption"),
    "retain, change of CLAP score: within base's noise": _clap_change,
    "retain, tag KL to base: within base's noise": partial(_to_base, "tag_kl"),
    "retain, MMD² to base: within base's noise": partial(_to_base, "mmd"),
    "held-out NLL, change": partial(_change, "holdout", HOLDOUT_DRIFT),
    "membership AUC: at most .1 farther from .5 than gold's": _auc,
    "seconds": _seconds,
}


# -------------------------------------------------------------------------------------------------------- the lines


@dataclass(frozen=True)
class MatrixLine:
    """A method on a list.

    Args:
        list: name of the list; empty for all tracks of the bench.
        tracks: number of forget tracks.
        method: label of the method.
        requests: number of requests that the tracks are split into.
        seeds: seeds of its runs.
        rows: values by title of `ROWS`, of each seed that has one.
        note: note about the list's gold.
    """

    list: str
    tracks: int
    method: str
    requests: int
    seeds: tuple[int, ...]
    rows: Mapping[str, tuple[Figure, ...]]
    note: str = ""

    @property
    def label(self) -> str:
        """The name of the list in tables."""
        several = f", {self.requests} requests" if self.requests > 1 else ""
        return f"{self.list or 'all'} ({self.tracks}{several})"

    def median(self, title: str) -> Figure | None:
        """Medians over the seeds, of the value and its bounds."""
        figures = self.rows.get(title, ())
        if not figures:
            return None
        bounds = [[getattr(figure, name) for figure in figures] for name in ("low", "high")]
        return Figure(
            statistics.median(figure.value for figure in figures),
            *(None if None in part else statistics.median(part) for part in bounds),
        )

    def as_dict(self) -> dict[str, Any]:
        """The entry in `leaderboard.json`."""
        rows = []
        for title in ROWS:
            if figure := self.median(title):
                values = [row.value for row in self.rows[title]]
                rows.append(
                    {"row": title, "median": figure.value, "of_seeds": values, "low": figure.low, "high": figure.high,
                     "met": figure.met}
                )  # fmt: skip
        return {
            "list": self.list, "tracks": self.tracks, "method": self.method, "requests": self.requests,
            "seeds": list(self.seeds), "note": self.note, "rows": rows,
        }  # fmt: skip


def matrix_lines(plan: Plan, out: Path, whole: Tracks, failed: Collection[Trial] = ()) -> list[MatrixLine]:
    """One line per list, method and number of requests, if the bench has lists.

    Args:
        whole: all tracks, see `encore.compare.plan.plan_tracks`.
        failed: trials that failed in this run of the bench.
    """
    if not plan.list_names:
        return []
    groups: dict[tuple[str, str, int], dict[int, Measurements]] = {}
    for trial in plan.trials:
        if trial not in failed and (out / trial.name / METRICS).exists():
            groups.setdefault((trial.list, trial.method, trial.requests), {})[trial.seed] = _measurements(
                out / trial.name, trial
            )
    notes = {
        name: gold_note(plan, list_tracks(plan, out, name, whole).forget, name, whole.forget) for name, _, _ in groups
    }
    return [
        MatrixLine(
            name, next(iter(of_seeds.values())).tracks, label_of(method, plan.methods[method]), requests,
            tuple(of_seeds), {title: _figures(of_seeds.values(), row) for title, row in ROWS.items()}, notes[name],
        )
        for (name, method, requests), of_seeds in groups.items()
    ]  # fmt: skip


def _measurements(folder: Path, trial: Trial) -> Measurements:
    results = read_metrics(folder / METRICS)
    models = {role: rows_of(results, role) for role in ("unlearned", *REFERENCES)}
    pieces = [forgotten(folder / str(n + 1), "nll") for n in range(trial.requests)] if trial.requests > 1 else []
    tracks = next((len(row.per_track) for key, row in models["unlearned"].items() if key == ("nll", "forget")), 0)
    return Measurements(models, tracks, pieces, cost(folder, trial)["seconds"])


def _figures(of_seeds: Collection[Measurements], row: Callable[[Measurements], Figure]) -> tuple[Figure, ...]:
    figures = []
    for measurements in of_seeds:
        try:
            figures.append(row(measurements))
        except (KeyError, ValueError, ZeroDivisionError):  # not measured, or no tracks
            continue
    return tuple(figures)
