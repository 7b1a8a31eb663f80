"""What `encore eval` does: measure a subject as it was asked for, and leave the figures where a report finds them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encore.api import Result, Role
from encore.errors import InputError
from encore.evaluate.embedder_choice import fitting
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.inputs import EvaluationInputs, from_run
from encore.evaluate.measure import measure
from encore.evaluate.parallel import shared
from encore.evaluate.record import evaluation_json
from encore.evaluate.result_cache import evaluation_cache
from encore.evaluate.samples import write_samples
from encore.report.card import write_card
from encore.report.page import write_report
from encore.report.run_files import read_run
from encore.reporter import Reporter
from encore.store.evaluation_json import NAME, file_hashes
from encore.store.metrics_json import write_metrics
from encore.store.run_folder import locked, read_json, remove, write_json, writing


@dataclass(frozen=True)
class EvalConfig:
    """How to measure: the flags of `encore eval`, one to one.

    Args:
        metrics: names; None for the fast ones, or all with `full`.
        embedder: see `encore.evaluate.embedder_choice.parsed`; empty for those that fit the model.
        draws: generations a caption: more of them make FAD measurable where tracks are few.
        golds: models for "gold" and "gold2"; without them the embedded golds, where they fit.
        cache: take what an earlier evaluation computed of the same models and clips, and keep what this one does.
    """

    metrics: tuple[str, ...] | None = None
    full: bool = False
    embedder: str = ""
    seed: int = 0
    force: bool = False
    golds: Mapping[Role, str] = field(default_factory=dict)
    cache: bool = True
    draws: int = 1


def evaluate_run(
    run: Path,
    asked: EvalConfig,
    *,
    out: Path | None = None,
    device: str = "auto",
    offline: bool = False,
    reporter: Reporter | None = None,
) -> Sequence[Result]:
    """Measure a complete run; `out`, by default the run's folder, then has what `evaluate_subject` writes.

    Raises:
        InputError: the run is not complete, or a file is not what it was.
        UnknownNameError, MissingExtraError: see `encore.evaluate.measure.measure`; `check_failures` there tells
            whether a metric failed.
    """
    subject = from_run(run, golds=asked.golds, seed=asked.seed, device=device, offline=offline, reporter=reporter)
    return evaluate_subject(subject, asked, out=out or run, run=run, offline=offline, reporter=reporter)


def evaluate_subject(
    subject: EvaluationInputs,
    asked: EvalConfig,
    *,
    out: Path | None = None,
    run: Path | None = None,
    offline: bool = False,
    reporter: Reporter | None = None,
) -> Sequence[Result]:
    """Measure models on tracks, and write what was found.

    Args:
        out: where `metrics.json`, `evaluation.json` and, where no metrics were named, samples go; None: nowhere. It is
            locked from before anything is measured. Samples of other models than these are removed from it.
        offline: fetch no embedder's weights.
        run: whose run it is; its report is then made in `out`, and the model's card where `out` is its own folder.

    Raises:
        EncoreError: another process holds `out`, or it can't be written.
    """
    reporter, started = reporter or Reporter(), time.monotonic()
    for note in subject.notes:
        reporter.note(note)
    embedder = asked.embedder or fitting(next(iter(subject.models.values())))
    with locked(out) if out is not None else nullcontext():
        evaluation = SharedEvaluation(
            subject.models, subject.clips, seed=asked.seed, embedder=embedder, offline=offline, force=asked.force,
            track_metadata=subject.track_metadata, recordings=subject.recordings, draws=asked.draws,
            cache=evaluation_cache() if asked.cache else None,
        )  # fmt: skip
        with shared(list(subject.models.values())) as both:
            results = measure(
                evaluation, asked.metrics,
                lambda name, done, of: reporter.progress("measure", done, of, {"metric": name}),
                full=asked.full, two_processes=both,
            )  # fmt: skip
            if out is None:
                return results
            how = evaluation_json(
                evaluation, golds=asked.golds, metrics=asked.metrics, full=asked.full, asked_embedder=asked.embedder,
                embedder=embedder, draws=asked.draws, notes=subject.notes, seconds=time.monotonic() - started,
            )  # fmt: skip
            if (out / "samples").exists() and _measured(out) != how["models"]:
                with writing(out):
                    remove(out / "samples")
            write_metrics(out / "metrics.json", results)
            write_json(out / NAME, how | file_hashes(out, run))  # last: a kill in between leaves hashes that differ
            if asked.metrics is None:
                write_samples(out, evaluation, results)
            elif not (out / "samples").exists():
                reporter.note("no samples are written where --metrics names some of the metrics")
            if run is not None:
                write_report(run, measured=out)
                if out.resolve() == run.resolve():
                    files = read_run(run)
                    write_card(run, files.run, files.results)
    return results


def _measured(folder: Path) -> Any:
    """The hashes of the models that a folder's samples are of; None where nothing says so."""
    try:
        return read_json(folder / NAME)["models"]
    except (InputError, KeyError, TypeError):
        return None
