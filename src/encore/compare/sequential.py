"""Opt-outs that come one after another: does what was forgotten first stay forgotten?"""

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
    """One of several requests, median over seeds: its own tracks right after it, and when all had been made.

    Args:
        nll_after, nll_end: mean NLL of its tracks.
        replays_after, replays_end: how many of them are continued verbatim (`verbatim.MATCH`); None: not measured.
    """

    method: str
    requests: int
    number: int
    tracks: int
    nll_after: float
    nll_end: float
    replays_after: float | None
    replays_end: float | None

    def as_dict(self) -> dict[str, Any]:
        """As `leaderboard.json` keeps it."""
        return asdict(self)


def request_lines(plan: Plan, out: Path, failed: Collection[Trial] = ()) -> list[RequestLine]:
    """Every request of the cells that came in several and were measured, but those that failed this time."""
    seen: dict[tuple[str, int, int], list[RequestLine]] = {}
    for cell in plan.cells:
        if cell.requests > 1 and cell not in failed and (out / cell.name / METRICS).exists():
            for line in _of_cell(out / cell.name, cell, label_of(cell.method, plan.methods[cell.method])):
                seen.setdefault((line.method, line.requests, line.number), []).append(line)
    return [_median(lines) for _, lines in sorted(seen.items())]


def _of_cell(folder: Path, cell: Trial, label: str) -> list[RequestLine]:
    end = {metric: forgotten(folder, metric) for metric in ("nll", "verbatim")}
    lines = []
    for number in range(1, cell.requests + 1):
        after = {metric: forgotten(folder / str(number), metric) for metric in end}
        own = [track for track in after["nll"] if track in end["nll"]]
        if own:
            lines.append(
                RequestLine(
                    label, cell.requests, number, len(own),
                    statistics.fmean(after["nll"][track] for track in own),
                    statistics.fmean(end["nll"][track] for track in own),
                    _replays(after["verbatim"], own),
                    _replays(end["verbatim"], own),
                )
            )  # fmt: skip
    return lines


def _replays(shares: Mapping[str, float], tracks: Collection[str]) -> int | None:
    """How many of the tracks replay, by the share of right tokens of each; None where there are no shares."""
    return sum(shares.get(track, 0.0) >= MATCH for track in tracks) if shares else None


def forgotten(folder: Path, metric: str) -> Mapping[str, float]:
    """Track -> the unlearned model's figure, of the tracks that a folder's evaluation was to forget."""
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
        median("replays_after"), median("replays_end"),
    )  # fmt: skip
