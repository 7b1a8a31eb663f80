"""`evaluation.json`: how the figures beside it were measured, so that they can be measured again.

What differs between two equal evaluations (times, the machine) stands here, and never in `metrics.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from encore.api import Backend, Role
from encore.plugins import installed

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
    }
