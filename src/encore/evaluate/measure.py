"""Measure the metrics, one after another, or in several processes."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from encore import distributed, plugins
from encore.api import Backend, Clip, ClipSet, Embedder, Metric, Result, Role
from encore.errors import EncoreError, PluginError
from encore.evaluate import parallel
from encore.evaluate.evaluation import SharedEvaluation
from encore.files import finite
from encore.metrics.rows import unmeasured

FAILED = "failed"  # key of `Result.details`: the exception of a metric

Progress = Callable[[str, int, int], None]


def evaluate(
    models: Mapping[Role, Backend],
    clips: Mapping[ClipSet, Sequence[Clip]],
    *,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    embedder: str | Embedder | Mapping[str, Embedder] | None = "latents",
    samples_per_caption: int = 1,
    force: bool = False,
    full: bool = False,
    progress: Progress | None = None,
) -> list[Result]:
    """Measure metrics; see `SharedEvaluation` and `measure` for the arguments.

    Args:
        models: models by role.
        clips: clips by set.
        metrics: names of metrics; None for all installed that are fast, or for all with `full`.
        seed: seed of resampling and generations.
        embedder: embedders of the embedding metrics.
        samples_per_caption: generations per caption.
        force: also report values that are mostly bias.
        full: include slow metrics by default.
        progress: called before each metric.

    Raises:
        InputError: there are no forget clips, or the models have different codecs.
        UnknownNameError: there is no such metric or embedder.
        MissingExtraError: a package of a metric or an embedder is not installed.
        PluginError: a metric or an embedder can't be loaded.
    """
    evaluation = SharedEvaluation(
        models, clips, seed=seed, embedder=embedder, samples_per_caption=samples_per_caption, force=force
    )
    return measure(evaluation, metrics, progress, full=full)


def measure(
    evaluation: SharedEvaluation,
    metrics: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    full: bool = False,
    two_processes: bool = False,
) -> list[Result]:
    """Rows of the metrics, in order.

    A metric with an unmet need gives one row with the reason. A value that is not finite becomes None, with the reason.
    A metric that raises loses only its own rows: see `check_failures`. Rows of a plugin that are another metric's are
    left out, and count as a failure of the plugin's.

    Args:
        evaluation: models and clips.
        metrics: names of metrics; None for all installed that are fast, or for all with `full`.
        progress: called with a metric's name, the number done and the total, and once at the end.
        full: include metrics whose spec is `full`.
        two_processes: see `encore.evaluate.parallel`.

    Raises:
        UnknownNameError: there is no metric of that name.
        MissingExtraError: a named metric's package is not installed (unnamed ones give an unmeasured row).
    """
    registry = plugins.metrics()
    chosen = sorted((entry.spec for entry in registry if full or not entry.spec.full), key=lambda spec: spec.trains)
    names = [spec.name for spec in chosen] if metrics is None else list(metrics)
    if metrics is not None:
        for name in names:
            registry.resolve(name)

    def report(number: int, done: int) -> None:
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

    shared = distributed.share(range(len(names)))  # of several processes each computes some metrics
    if two_processes and len(names) > 1:
        measured = parallel.map_in_two_processes(rows, len(names), report)
    else:
        own: dict[int, list[Result]] = {}
        with distributed.alone():
            for number in shared:
                report(number, number)
                own[number] = rows(number)
        distributed.wait_for_all()
        of_all = {number: made for each in distributed.everyone(own) for number, made in each.items()}
        measured = [of_all[number] for number in range(len(names))]
    if progress:
        progress("", len(names), len(names))
    return [row for name, rows in zip(names, _without_taken(names, measured), strict=True) for row in rows]


def _without_taken(names: Sequence[str], measured: Sequence[list[Result]]) -> list[list[Result]]:
    """Each metric's rows, those of plugins without rows that are another metric's: its name, a row that it declares, or
    one that it returned before."""
    registry = {entry.spec.name: entry for entry in plugins.metrics()}
    owners = {(row.name, row.set): name for name, entry in registry.items() for row in entry.spec.rows}
    returned: dict[tuple[str, str, str], str] = {}
    kept = []
    for name, rows in zip(names, measured, strict=True):
        taken: dict[str, str] = {}
        for row in rows:
            key = (row.metric, row.model, row.set)
            owner = owners.get((row.metric, row.set), row.metric if row.metric in registry else name)
            owner = returned.setdefault(key, owner) if owner == name else owner
            if owner != name and registry[name].source.distribution != plugins.OWN:
                taken[row.metric] = owner
        kept.append([row for row in rows if row.metric not in taken])
        if taken:
            listed = " and its ".join(f"row {row!r} is that of the metric {owner!r}" for row, owner in taken.items())
            message = f"its {listed}, and was left out"
            kept[-1].append(unmeasured(name, "none", "forget", f"{name!r}: {message}", details={FAILED: message}))
    return kept


def _rows(metric: type[Metric], evaluation: SharedEvaluation) -> list[Result]:
    """A metric's rows; if it raises, the rows up to then and one with the error."""
    name = metric.spec.name
    if unmet := evaluation.unmet(metric.spec):
        clips: ClipSet = "retain" if "retain" in metric.spec.needs else "forget"
        return [unmeasured(name, "unlearned", clips, unmet)]
    rows: list[Result] = []

    def collect() -> None:
        for row in metric().measure(evaluation):
            rows.append(_finite(row))  # noqa: PERF401 (a list built at once would lose the rows before an error)

    try:
        plugins.third_party(collect)
    except plugins.Broken as broken:
        if isinstance(broken.error, EncoreError):  # deliberate: the metric can't measure
            rows.append(unmeasured(name, "unlearned", "forget", broken.error.message))
        else:
            rows.append(_failed(name, broken.error))
    return rows


def _failed(name: str, error: BaseException) -> Result:
    """The row of a metric that raised an unexpected exception."""
    text = " ".join(str(error).split())
    message = type(error).__name__ + (f": {text}" if text else "")
    if frames := traceback.extract_tb(error.__traceback__):
        message += f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return unmeasured(name, "unlearned", "forget", f"the metric {name!r} failed: {message}", details={FAILED: message})


def check_failures(results: Sequence[Result]) -> None:
    """Raise if a metric failed; call it after all results are written and shown.

    Args:
        results: rows of `measure`.

    Raises:
        PluginError: names the metrics that raised unexpected exceptions.
    """
    failed = {row.metric: row.details[FAILED] for row in results if FAILED in row.details}
    if failed:
        message = "; ".join(f"{name!r} failed: {error}" for name, error in failed.items())
        raise PluginError(
            f"the metric{'s' if len(failed) > 1 else ''} {message}",
            "all other metrics were measured; a failed metric's row in metrics.json has the same reason",
        )


def _finite(row: Result) -> Result:
    """The row with every number finite or None."""
    value = _or_none(row.value)
    why = row.why
    if row.value is not None and value is None:
        why = f"not measured: the value is {row.value}"
    low, high = (None, None) if value is None else (_or_none(row.low), _or_none(row.high))
    return replace(
        row, value=value, low=low, high=high, why=why, details=finite(row.details),
        per_track={track: _or_none(number) for track, number in row.per_track.items()},
    )  # fmt: skip


def _or_none(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
