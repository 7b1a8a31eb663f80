"""Measure models on tracks, a metric after the other, or by two processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from encore import plugins
from encore.api import Backend, Clip, ClipSet, Embedder, Metric, Result, Role
from encore.errors import EncoreError, PluginError
from encore.metrics.rows import unmeasured
from encore.runs import two
from encore.runs.evaluation import SharedEvaluation

Progress = Callable[[str, int, int], None]


def evaluate(
    models: Mapping[Role, Backend],
    clips: Mapping[ClipSet, Sequence[Clip]],
    *,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    embedder: str | Embedder | Mapping[str, Embedder] | None = "latents",
    draws: int = 1,
    force: bool = False,
    full: bool = False,
    progress: Progress | None = None,
) -> list[Result]:
    """Measure every metric that was asked for; see `SharedEvaluation` and `measure`.

    Raises:
        InputError: there is nothing to forget, or the models don't belong together.
        UnknownNameError, MissingExtraError, PluginError: a metric or the embedder can't be had, or a metric broke.
    """
    evaluation = SharedEvaluation(models, clips, seed=seed, embedder=embedder, draws=draws, force=force)
    return measure(evaluation, metrics, progress, full=full)


def measure(
    evaluation: SharedEvaluation,
    metrics: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    full: bool = False,
    two_processes: bool = False,
) -> list[Result]:
    """Rows of the named metrics, in that order; where none are named, of all installed that are fast, or of all.

    A metric whose needs are not met gives one row that says which; a figure that is not finite becomes None, with the
    reason.

    Args:
        full: also those whose spec says `full`. two_processes: see `encore.runs.two`.
        progress: called with a metric's name, how many are done and how many there are, and once at the end.

    Raises:
        UnknownNameError, MissingExtraError: a metric that was named can't be had (by default such are skipped rows).
        PluginError: a metric raised what it should not.
    """
    registry = plugins.metrics()
    names = [entry.spec.name for entry in registry if full or not entry.spec.full] if metrics is None else list(metrics)
    if metrics is not None:
        for name in names:
            registry.resolve(name)

    def told(number: int, done: int) -> None:
        if progress:
            progress(names[number], done, len(names))

    def rows(number: int) -> list[Result]:
        try:
            metric = registry.resolve(names[number])
        except EncoreError as error:
            return [unmeasured(names[number], "unlearned", "forget", error.message)]
        return [replace(_finite(row), version=metric.spec.version) for row in _rows(metric, evaluation)]

    if two_processes and len(names) > 1:
        measured = two.by_two(rows, len(names), told)
    else:
        measured = []
        for number in range(len(names)):
            told(number, number)
            measured.append(rows(number))
    if progress:
        progress("", len(names), len(names))
    return [row for own in measured for row in own]


def _rows(metric: type[Metric], evaluation: SharedEvaluation) -> Iterable[Result]:
    unmet = evaluation.unmet(metric.spec)
    if unmet:
        clips: ClipSet = "retain" if "retain" in metric.spec.needs else "forget"
        return [unmeasured(metric.spec.name, "unlearned", clips, unmet)]
    try:
        return list(metric().measure(evaluation))
    except EncoreError as error:
        return [unmeasured(metric.spec.name, "unlearned", "forget", error.message)]
    except Exception as error:
        raise PluginError(
            f"the metric {metric.spec.name!r} failed: {type(error).__name__}: {error}",
            "name the other metrics with --metrics to measure without it; ENCORE_DEBUG=1 shows where it failed",
        ) from error


def _finite(row: Result) -> Result:
    """The row with every figure finite or None."""
    value = _or_none(row.value)
    why = row.why
    if row.value is not None and value is None:
        why = f"not measured: the figure came out as {row.value}"
    known = value is not None
    return replace(
        row, value=value, low=_or_none(row.low) if known else None, high=_or_none(row.high) if known else None,
        per_track={track: _or_none(figure) for track, figure in row.per_track.items()}, why=why,
        details={key: _plain(detail) for key, detail in row.details.items()},
    )  # fmt: skip


def _or_none(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return _or_none(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
