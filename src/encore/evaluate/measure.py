"""Measure models on tracks, a metric after the other, or by two processes."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from encore import plugins
from encore.api import Backend, Clip, ClipSet, Embedder, Metric, Result, Role
from encore.errors import EncoreError, PluginError
from encore.evaluate import parallel
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.rows import unmeasured

FAILED = "failed"  # key of `Result.details`: what a metric raised

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
        UnknownNameError, MissingExtraError, PluginError: a metric or the embedder can't be had.
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
    reason. A metric that raises costs its own rows only: see `check_failures`.

    Args:
        full: also those whose spec says `full`. two_processes: see `encore.evaluate.parallel`.
        progress: called with a metric's name, how many are done and how many there are, and once at the end.

    Raises:
        UnknownNameError, MissingExtraError: a metric that was named can't be had (by default such are skipped rows).
    """
    registry = plugins.metrics()
    chosen = sorted((entry.spec for entry in registry if full or not entry.spec.full), key=lambda spec: spec.trains)
    names = [spec.name for spec in chosen] if metrics is None else list(metrics)
    if metrics is not None:
        for name in names:
            registry.resolve(name)

    def told(number: int, done: int) -> None:
        if progress:
            progress(names[number], done, len(names))

    def rows(number: int) -> list[Result]:
        try:
            metric = registry.resolve(names[number])
        except PluginError as error:
            return [_failed(names[number], error)]
        except EncoreError as error:
            return [unmeasured(names[number], "unlearned", "forget", error.message)]
        return [replace(row, version=metric.spec.version) for row in _rows(metric, evaluation)]

    if two_processes and len(names) > 1:
        measured = parallel.by_two(rows, len(names), told)
    else:
        measured = []
        for number in range(len(names)):
            told(number, number)
            measured.append(rows(number))
    if progress:
        progress("", len(names), len(names))
    return [row for own in measured for row in own]


def _rows(metric: type[Metric], evaluation: SharedEvaluation) -> list[Result]:
    """A metric's rows; where it raises, those that it gave before, and one that says what failed."""
    name = metric.spec.name
    unmet = evaluation.unmet(metric.spec)
    if unmet:
        clips: ClipSet = "retain" if "retain" in metric.spec.needs else "forget"
        return [unmeasured(name, "unlearned", clips, unmet)]
    rows: list[Result] = []

    def collect() -> None:
        for row in metric().measure(evaluation):
            rows.append(_finite(row))  # noqa: PERF401 (a list built at once would lose the rows before an error)

    try:
        plugins.third_party(collect)
    except plugins.Broken as broken:
        if isinstance(broken.error, EncoreError):  # a metric's way to say that it can't measure
            rows.append(unmeasured(name, "unlearned", "forget", broken.error.message))
        else:
            rows.append(_failed(name, broken.error))
    return rows


def _failed(name: str, error: BaseException) -> Result:
    """The row of a metric that raised what it should not."""
    text = " ".join(str(error).split())
    what = type(error).__name__ + (f": {text}" if text else "")
    if frames := traceback.extract_tb(error.__traceback__):
        what += f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return unmeasured(name, "unlearned", "forget", f"the metric {name!r} failed: {what}", details={FAILED: what})


def check_failures(results: Sequence[Result]) -> None:
    """Raise where a metric failed: to call once everything is written and shown.

    Args:
        results: rows of `measure`.

    Raises:
        PluginError: names the metrics that raised what they should not.
    """
    failed = {row.metric: row.details[FAILED] for row in results if FAILED in row.details}
    if failed:
        what = "; ".join(f"{name!r} failed: {error}" for name, error in failed.items())
        raise PluginError(
            f"the metric{'s' if len(failed) > 1 else ''} {what}",
            "all other metrics were measured; a failed metric's row in metrics.json has the same reason",
        )


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
