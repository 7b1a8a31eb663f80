"""`evaluation.json`: how the figures beside it were measured, so that they can be measured again.

What differs between two equal evaluations (times, the machine) stands here, and never in `metrics.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encore.api import Backend, Role
from encore.audio.files import file_sha256
from encore.errors import InputError
from encore.plugins import distributions, installed
from encore.plugins import metrics as known_metrics
from encore.runs.dates import utc_now
from encore.runs.metrics_json import NAME as METRICS

if TYPE_CHECKING:
    from encore.runs.evaluation import SharedEvaluation

SCHEMA = 1
NAME = "evaluation.json"


def evaluation_json(
    evaluation: SharedEvaluation,
    *,
    golds: Mapping[Role, str],
    metrics: Sequence[str] | None,
    full: bool,
    asked_embedder: str,
    embedder: str,
    draws: int,
    notes: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    """The settings of an evaluation, the hashes of what it measured, and where it ran.

    Args:
        golds: the gold models that were named. metrics: those that were named, or None. full: whether `--full` was.
        asked_embedder: what was asked for, empty for the default. embedder: what that came to; both as
            `encore.runs.embedders.parsed` reads them.
        draws: generations a caption. seconds: that it took.
    """
    from encore.runs.environment import hardware, versions  # here, so that the file's name is had without torch
    from encore.runs.models import model_sha256

    models: Mapping[Role, Backend] = evaluation.models
    names = metrics if metrics is not None else [e.spec.name for e in known_metrics() if full or not e.spec.full]
    families = {spec.name for model in models.values() if (spec := getattr(type(model), "spec", None))}
    return {
        "schema": SCHEMA,
        "golds": dict(golds),
        "metrics": list(metrics) if metrics is not None else None,
        "full": full,
        "asked_embedder": asked_embedder,
        "embedder": embedder,
        "draws": draws,
        "embedders": {name: embedder.identity for name, embedder in evaluation.embedders.items()},
        "seed": evaluation.seed,
        "force": evaluation.force,
        "notes": list(notes),
        "models": {role: model_sha256(model) for role, model in models.items()},
        "versions": versions(),
        "plugins": installed(),
        "hardware": hardware(str(next(iter(models.values())).device)),
        "seconds": round(seconds, 3),
        "measured": utc_now(),
        "distributions": distributions(metrics=names, embedders=evaluation.embedders, backends=families),
    }


def tie(folder: Path, run: Path | None) -> dict[str, str]:
    """Hashes of the files that an evaluation belongs to: `metrics.json` beside it, and the run's records.

    `evaluation.json` is written after `metrics.json`, with its hash: when a process is killed in between, they differ.

    Args:
        folder: where `metrics.json` is.
        run: the run's folder; None where models were named instead of a run.

    Raises:
        InputError: a file can't be read.
    """
    files = {"metrics": folder / METRICS}
    if run is not None:
        files |= {"request": run / "request.json", "run": run / "run.json"}
    return {f"{name}_sha256": file_sha256(path) for name, path in files.items()}


def check_tie(how: Mapping[str, Any], folder: Path, run: Path, hint: str) -> None:
    """Check that figures, evaluation, run and request belong together.

    Args:
        how: content of `evaluation.json`.
        folder: where `metrics.json` is.
        run: the run's folder.
        hint: of the error.

    Raises:
        InputError: one of them is not the file that `evaluation.json` was written with.
    """
    here = tie(folder, run)
    other = [f"{name.removesuffix('_sha256')}.json" for name, digest in here.items() if how.get(name) != digest]
    if other:
        verb = "is not the file" if len(other) == 1 else "are not the files"
        raise InputError(f"{' and '.join(other)} {verb} that {NAME} was written for", hint)
