"""Sequential forget requests: do the tracks of earlier requests stay forgotten?"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from encore.compare.plan import Plan, Trial, label_of
from encore.metrics.memorization.verbatim import MATCH
from encore.store.metrics_json import NAME as METRICS
from encore.store.metrics_json import read_metrics


@dataclass(frozen=True)
class RequestLine:
    """One of several requests: its tracks right after it and after the last request, medians over seeds.

    Args:
        method: label of the method.
        requests: number of requests.
        number: number of this request, from 1.
        tracks: number of its tracks.
        nll_after: mean NLL of its tracks right after it.
        nll_end: mean NLL of its tracks after the last request.
        verbatim_after: number of its tracks that are continued verbatim (`verbatim.MATCH`) right after it; None if not
            measured.
        verbatim_end: the same after the last request.
    """

    method: str
    requests: int
    number: int
    tracks: int
    nll_after: float
    nll_end: float
    verbatim_after: float | None
    verbatim_end: float | None

    def as_dict(self) -> dict[str, Any]:
        """The entry in `leaderboard.json`."""
        return asdict(self)


def request_lines(plan: Plan, out: Path, failed: Collection[Trial] = ()) -> list[RequestLine]:
    """The requests of all measured trials with several requests, except failed trials."""
    groups: dict[tuple[str, int, int], list[RequestLine]] = {}
    for trial in plan.trials:
        if trial.requests > 1 and trial not in failed and (out / trial.name / METRICS).exists():
            for line in _trial_lines(out / trial.name, trial, label_of(trial.method, plan.methods[trial.method])):
                groups.setdefault((line.method, line.requests, line.number), []).append(line)
    return [_median(lines) for _, lines in sorted(groups.items())]


def _trial_lines(folder: Path, trial: Trial, label: str) -> list[RequestLine]:
    end = {metric: forgotten(folder, metric) for metric in ("nll", "verbatim")}
    lines = []
    for number in range(1, trial.requests + 1):
        after = {metric: forgotten(folder / str(number), metric) for metric in end}
        tracks = [track for track in after["nll"] if track in end["nll"]]
        if tracks:
            lines.append(
                RequestLine(
                    label, trial.requests, number, len(tracks),
                    statistics.fmean(after["nll"][track] for track in tracks),
                    statistics.fmean(end["nll"][track] for track in tracks),
                    _verbatim(after["verbatim"], tracks),
                    _verbatim(end["verbatim"], tracks),
                )
            )  # fmt: skip
    return lines


def _verbatim(shares: Mapping[str, float], tracks: Collection[str]) -> int | None:
    """The number of tracks that are continued verbatim, from shares of right tokens; None without shares."""
    return sum(shares.get(track, 0.0) >= MATCH for track in tracks) if shares else None


def forgotten(folder: Path, metric: str) -> Mapping[str, float]:
    """The unlearned model's value of each forget track in a folder's evaluation."""
    for row in read_metrics(folder / METRICS):
        if (row.metric, row.model, row.set) == (metric, "unlearned", "forget"):
            return {track: value for track, value in row.per_track.items() if value is not None}
    return {}


def _median(lines: list[RequestLine]) -> RequestLine:
    first = lines[0]

    def median(name: str) -> Any:
        known = [value for line in lines if (value := getattr(line, name)) is not None]
        return statistics.median(known) if known else None

    return RequestLine(
        first.method, first.requests, first.number, first.tracks, median("nll_after"), median("nll_end"),
        median("verbatim_after"), median("verbatim_end"),
    )  # fmt: skip
