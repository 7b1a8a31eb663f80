"""Helpers that aggregate per-track values into result rows, shared by all metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from encore import stats
from encore.api import Backend, Batch, Clip, ClipSet, Evaluation, Result, Role

if TYPE_CHECKING:
    from torch import Tensor

ROLES: tuple[Role, ...] = get_args(Role)
SETS: tuple[ClipSet, ...] = get_args(ClipSet)
NOT_FINITE = "not_finite"  # in details of a row without a value: the model has likelihoods that are not finite
MARK = "\x1f"  # separates a track's id from the name of a variant of it; ids have no control characters
Rows = Callable[[Evaluation, Role, ClipSet], Iterable[Result]]


def by_track(clips: Sequence[Clip], totals: Iterable[float], counts: Iterable[float]) -> dict[str, float]:
    """Sum of totals / sum of counts over each track's clips, by track id; tracks with a count of 0 are left out."""
    sums: dict[str, list[float]] = {}
    for clip, total, count in zip(clips, totals, counts, strict=True):
        entry = sums.setdefault(clip.track, [0.0, 0.0])
        entry[0] += total
        entry[1] += count
    return {track: total / count for track, (total, count) in sorted(sums.items()) if count}


def losses_by_track(backend: Backend, clips: Sequence[Clip], losses: Tensor) -> dict[str, float]:
    """Mean loss per token of each track, from the mean losses of clips, [N]."""
    counts = [
        int(backend.token_mask(Batch.of([clip], backend.device)).sum()) if backend.has_tokens else 1 for clip in clips
    ]
    means = losses.double().tolist()
    return by_track(clips, [mean * count for mean, count in zip(means, counts, strict=True)], counts)


def windows_by_track(clips: Iterable[Clip]) -> dict[str, list[Clip]]:
    """The clips of each track, in order."""
    windows: dict[str, list[Clip]] = {}
    for clip in clips:
        windows.setdefault(clip.track, []).append(clip)
    return windows


def code_entropies(clips: Iterable[Clip]) -> dict[str, float]:
    """`encore.losses.code_entropy` of each track's clips together, by track id."""
    import torch

    from encore.losses import code_entropy

    windows = windows_by_track(clips)
    return {track: code_entropy(torch.cat([clip.codes for clip in own], -1)) for track, own in windows.items()}


def first_windows(clips: Sequence[Clip]) -> list[Clip]:
    """The first clip of each track, in the order of track ids."""
    return [windows[0] for _, windows in sorted(windows_by_track(clips).items())]


def rows_by_model(
    evaluation: Evaluation, metric: str, sets: Iterable[ClipSet], models: Iterable[Role], rows: Rows, **fields: Any
) -> Iterator[Result]:
    """The rows of each set and model, or one with the reason: an empty set, a likelihood that is not finite."""
    for clips in sets:
        if not evaluation.clips.get(clips):
            yield no_clips(metric, clips, **fields)
            continue
        for model in available_roles(evaluation, *models):
            if reason := not_finite(evaluation, model, clips):
                yield unmeasured(metric, model, clips, reason, **{"details": {NOT_FINITE: True}, **fields})
            else:
                yield from rows(evaluation, model, clips)


def mean_row(
    metric: str, model: str, clips: str, tracks: Mapping[str, float], evaluation: Evaluation, **fields: Any
) -> Result:
    """A row with the unweighted mean over tracks and its bootstrap interval, bounded to [0, 1] for the unit "share"."""
    values = list(tracks.values())
    if not values:
        return unmeasured(metric, model, clips, f"no {clips} track is long enough to measure it", **fields)
    bounds = (0.0, 1.0) if fields.get("unit") == "share" else None
    low, high = stats.bootstrap_interval(values, seed=evaluation.seed, bounds=bounds) or (None, None)
    return Result(
        metric, model, clips, sum(values) / len(values), low, high, n=len(values), per_track=dict(tracks), **fields
    )


def unmeasured(metric: str, model: str, clips: str, why: str, **fields: Any) -> Result:
    """A row without a value, with the reason."""
    return Result(metric, model, clips, None, why=f"not measured: {why}", **fields)


def not_finite(evaluation: Evaluation, model: Role, clips: ClipSet) -> str:
    """Why a model's generations can't be measured: its likelihoods are not finite. Empty if they are finite."""
    tracks = [track for track, nll in evaluation.nll(model, clips).items() if not math.isfinite(nll)]
    return f"the model's likelihood of {tracks[0].partition(MARK)[0]} is not finite" if tracks else ""


def no_continuations(evaluation: Evaluation, model: Role, clips: ClipSet) -> str:
    """Why a model's continuations can't be measured; empty if they can."""
    return not_finite(evaluation, model, clips) if evaluation.backend(model).has_tokens else "the model has no tokens"


def available_roles(evaluation: Evaluation, *roles: Role) -> list[Role]:
    """The roles, by default all, for which the evaluation has a model; the order is kept."""
    return [role for role in roles or ROLES if role in evaluation.models]


def no_clips(metric: str, clips: ClipSet, **fields: Any) -> Result:
    """The row for an empty set."""
    return unmeasured(metric, "unlearned", clips, f"there are no {clips} tracks", **fields)
