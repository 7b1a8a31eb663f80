"""`encore eval`: measure models on tracks and write the results."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encore import distributed
from encore.api import Result, Role
from encore.errors import InputError
from encore.evaluate.embedder_choice import default_embedders
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.inputs import EvaluationInputs, from_run
from encore.evaluate.measure import measure
from encore.evaluate.parallel import threads_for_two
from encore.evaluate.record import evaluation_json
from encore.evaluate.result_cache import evaluation_cache
from encore.evaluate.samples import write_samples
from encore.report.card import write_card
from encore.report.page import write_report
from encore.report.run_files import read_run
from encore.reporter import Reporter
from encore.results.targets import summary
from encore.store.evaluation_json import NAME, file_hashes
from encore.store.metrics_json import NAME as METRICS
from encore.store.metrics_json import read_metrics, write_metrics
from encore.store.run_folder import locked, read_json, remove, write_json, writing


@dataclass(frozen=True)
class EvalConfig:
    """Settings of an evaluation, one per flag of `encore eval`.

    Args:
        metrics: names of metrics; None for the fast ones, or for all with `full`.
        full: include slow metrics by default.
        embedder: see `encore.evaluate.embedder_choice.parsed`; empty for the model's default.
        seed: seed of resampling and generations.
        force: also report values that are mostly bias.
        golds: models for "gold" and "gold2"; by default the embedded golds, if they match the tracks.
        cache: reuse results of earlier evaluations of the same models and clips, and store new ones.
        samples_per_caption: generations per caption; more of them make FAD measurable with few tracks.
    """

    metrics: tuple[str, ...] | None = None
    full: bool = False
    embedder: str = ""
    seed: int = 0
    force: bool = False
    golds: Mapping[Role, str] = field(default_factory=dict)
    cache: bool = True
    samples_per_caption: int = 1


def evaluate_run(
    run: Path,
    config: EvalConfig,
    *,
    out: Path | None = None,
    device: str = "auto",
    offline: bool = False,
    reporter: Reporter | None = None,
) -> Sequence[Result]:
    """Measure a complete run and write the results; see `evaluate_inputs`.

    Args:
        out: where results are written, by default the run's folder.

    Raises:
        InputError: the run is not complete, or a file has changed since.
        UnknownNameError: see `encore.evaluate.measure.measure`.
        MissingExtraError: see `encore.evaluate.measure.measure`. Failed metrics are raised by `check_failures` there.
    """
    inputs = from_run(run, golds=config.golds, seed=config.seed, device=device, offline=offline, reporter=reporter)
    return evaluate_inputs(inputs, config, out=out or run, run=run, offline=offline, reporter=reporter)


def evaluate_inputs(
    inputs: EvaluationInputs,
    config: EvalConfig,
    *,
    out: Path | None = None,
    run: Path | None = None,
    offline: bool = False,
    reporter: Reporter | None = None,
) -> Sequence[Result]:
    """Measure models on tracks and write the results.

    Args:
        out: where `metrics.json`, `evaluation.json` and, if no metrics are named, samples are written; None writes
            nothing. It is locked before anything is measured. Samples of other models are removed.
        run: the run that is measured; its report is written to `out`, and its model card if `out` is its folder.
        offline: do not download embedder weights.

    Raises:
        EncoreError: another process has locked `out`, or it can't be written.
    """
    reporter, started = reporter or Reporter(), time.monotonic()
    for note in inputs.notes:
        reporter.note(note)
    embedder = config.embedder or default_embedders(next(iter(inputs.models.values())))
    writes = out is not None and distributed.rank() == 0
    with locked(out) if out is not None and writes else nullcontext():
        evaluation = SharedEvaluation(
            inputs.models, inputs.clips, seed=config.seed, embedder=embedder, offline=offline, force=config.force,
            track_metadata=inputs.track_metadata, recordings=inputs.recordings,
            samples_per_caption=config.samples_per_caption,
            cache=evaluation_cache() if config.cache else None,
        )  # fmt: skip
        with threads_for_two(list(inputs.models.values())) as two:
            results = measure(
                evaluation, config.metrics,
                lambda name, done, of: reporter.progress("measure", done, of, {"metric": name}),
                full=config.full, two_processes=two,
            )  # fmt: skip
            for fault in [line.fault for line in summary(results) if line.fault]:
                reporter.note(fault)
            if out is None or not writes:
                return results
            record = evaluation_json(
                evaluation, golds=config.golds, metrics=config.metrics, full=config.full,
                requested_embedder=config.embedder, embedder=embedder,
                samples_per_caption=config.samples_per_caption, notes=inputs.notes,
                seconds=time.monotonic() - started,
            )  # fmt: skip
            if _measured(out) != record["models"]:
                if (out / "samples").exists():
                    with writing(out):
                        remove(out / "samples")
            elif replaced := _replaced(out, results):
                reporter.note(
                    f"{replaced} figures of the earlier evaluation in {out} are replaced, and this one did not measure "
                    "them; another --out keeps both"
                )
            write_metrics(out / METRICS, results)
            write_json(out / NAME, record | file_hashes(out, run))  # last: if interrupted before, the hashes differ
            if config.metrics is None:
                write_samples(out, evaluation, results)
            elif not (out / "samples").exists():
                reporter.note("no samples are written if --metrics is given")
            if run is not None:
                write_report(run, measured=out)
                if out.resolve() == run.resolve():
                    files = read_run(run)
                    write_card(run, files.run, files.results)
    return results


def _replaced(folder: Path, results: Sequence[Result]) -> int:
    """How many figures a folder's `metrics.json` has that `results` lack."""
    try:
        earlier = read_metrics(folder / METRICS)
    except InputError:
        return 0
    rows = {(row.metric, row.model, row.set) for row in results}
    return sum(row.value is not None and (row.metric, row.model, row.set) not in rows for row in earlier)


def _measured(folder: Path) -> Any:
    """Hashes of the models that a folder's evaluation measured; None if unknown."""
    try:
        return read_json(folder / NAME)["models"]
    except (InputError, KeyError, TypeError):
        return None
