"""How figures of tracks become rows: shared by the metrics, so that all count and order tracks alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from encore import stats
from encore.api import Clip, ClipSet, Evaluation, Result, Role

ROLES: tuple[Role, ...] = get_args(Role)
SETS: tuple[ClipSet, ...] = get_args(ClipSet)


def by_track(clips: Sequence[Clip], totals: Iterable[float], counts: Iterable[float]) -> dict[str, float]:
    """Sum of totals over sum of counts of each track's clips, by track id; a track without counts is left out."""
    sums: dict[str, list[float]] = {}
    for clip, total, count in zip(clips, totals, counts, strict=True):
        entry = sums.setdefault(clip.track, [0.0, 0.0])
        entry[0] += total
        entry[1] += count
    return {track: total / count for track, (total, count) in sorted(sums.items()) if count}


def mean_row(
    metric: str, model: str, clips: str, tracks: Mapping[str, float], evaluation: Evaluation, **fields: Any
) -> Result:
    """A row whose figure is the mean over tracks, each counting once, with an interval over tracks.

    Figures of the unit "share" lie between 0 and 1, and the interval knows it.
    """
    values = list(tracks.values())
    if not values:
        return unmeasured(metric, model, clips, f"no {clips} track is long enough to measure it", **fields)
    bounds = (0.0, 1.0) if fields.get("unit") == "share" else None
    low, high = stats.bootstrap_interval(values, seed=evaluation.seed, bounds=bounds) or (None, None)
    return Result(
        metric, model, clips, sum(values) / len(values), low, high, n=len(values), per_track=dict(tracks), **fields
    )


def unmeasured(metric: str, model: str, clips: str, why: str, **fields: Any) -> Result:
    """A row without a figure, and the reason."""
    return Result(metric, model, clips, None, why=f"not measured: {why}", **fields)


def not_finite(evaluation: Evaluation, model: Role, clips: ClipSet) -> str:
    """Why what a model plays says nothing: its likelihoods are not finite. Empty where they are."""
    broken = [track for track, nll in evaluation.nll(model, clips).items() if not math.isfinite(nll)]
    return f"the model's likelihood of {broken[0]} is not finite" if broken else ""


def given(evaluation: Evaluation, *roles: Role) -> list[Role]:
    """Those of the roles that were given, in this order; all roles where none are named."""
    return [role for role in roles or ROLES if role in evaluation.models]


def no_clips(metric: str, clips: ClipSet, **fields: Any) -> Result:
    """The row of a set that is not there."""
    return unmeasured(metric, "unlearned", clips, f"there are no {clips} tracks", **fields)
