"""The record of an evaluation, `evaluation.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from encore.api import Backend, Role
from encore.evaluate.evaluation import SharedEvaluation
from encore.plugins import distributions, installed
from encore.plugins import metrics as known_metrics
from encore.store.dates import utc_now
from encore.store.environment import hardware, versions
from encore.store.evaluation_json import SCHEMA
from encore.store.model_name import model_sha256


def evaluation_json(
    evaluation: SharedEvaluation,
    *,
    golds: Mapping[Role, str],
    metrics: Sequence[str] | None,
    full: bool,
    requested_embedder: str,
    embedder: str,
    samples_per_caption: int,
    notes: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    """The settings of an evaluation, the hashes of the models, and the environment.

    Args:
        golds: the gold models that were named.
        metrics: the metrics that were named, or None.
        full: whether `--full` was given.
        requested_embedder: the embedders that were named, empty for the default.
        embedder: the embedders that were used; both as in `encore.evaluate.embedder_choice.parsed`.
        samples_per_caption: generations per caption.
        notes: messages about models and tracks.
        seconds: duration of the evaluation.
    """
    models: Mapping[Role, Backend] = evaluation.models
    names = metrics if metrics is not None else [e.spec.name for e in known_metrics() if full or not e.spec.full]
    families = {spec.name for model in models.values() if (spec := getattr(type(model), "spec", None))}
    return {
        "schema": SCHEMA,
        "golds": dict(golds),
        "metrics": list(metrics) if metrics is not None else None,
        "full": full,
        "requested_embedder": requested_embedder,
        "embedder": embedder,
        "samples_per_caption": samples_per_caption,
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
