"""`meta.json` of a bench's folder: which rows tell models that hold the tracks from models that don't."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from encore.errors import InputError
from encore.store.evaluation_json import NAME as EVALUATION
from encore.store.run_folder import read_json
from encore.store.schemas import Evaluation, Meta, Request

SCHEMA = 1
NAME = "meta.json"
Verdict = Literal["yes", "no", "incomplete"]
MEASURING = ("requested_embedder", "samples_per_caption", "seed", "force", "plugins")  # of `evaluation.json`
COMPARED = ("base", "gold", "gold2")


@dataclass(frozen=True)
class RowTrust:
    """What `encore bench --meta` found of one row; see `encore.compare.meta` for the formulas.

    Args:
        metric: name of the row.
        set: its set.
        label: the row's name in tables.
        trusted: whether it tells the models apart: "yes", "no" or, until all have a value, "incomplete".
        auc: faithfulness, in [0, 1]; None where a side has no model with a value.
        low: lower end of its 95 % interval.
        high: upper end.
        holds: number of models that hold the tracks.
        lacks: number of models that don't.
        relearning: mean over `trials`, in [0, 1]; None with too few trials.
        quantisation: the same.
        robustness: harmonic mean of the two.
        trials: number of trials that the row says have forgotten.
        order: Kendall's τ-b of the trials' order before and after each attack, by form.
    """

    metric: str
    set: str
    label: str
    trusted: Verdict
    auc: float | None = None
    low: float | None = None
    high: float | None = None
    holds: int = 0
    lacks: int = 0
    relearning: float | None = None
    quantisation: float | None = None
    robustness: float | None = None
    trials: int = 0
    order: Mapping[str, float] | None = None

    @property
    def text(self) -> str:
        """The verdict in a few words: "yes, AUC 0.98 (0.86 to 1.00), 11 and 10 models"."""
        models = f"{self.holds} and {self.lacks} models"
        if self.auc is None or self.low is None or self.high is None:
            return f"{self.trusted}: {models}"
        return f"{self.trusted}, AUC {self.auc:.2f} ({self.low:.2f} to {self.high:.2f}), {models}"


def read_meta(folder: Path) -> dict[str, Any]:
    """The contents of a bench's `meta.json`; empty if there is none.

    Raises:
        InputError: it can't be read, or is of another schema.
    """
    if not (folder / NAME).exists():
        return {}
    try:
        return dict(read_json(folder / NAME, Meta))
    except InputError as error:
        raise InputError(
            f"can't read {folder / NAME}: {error.message}", "remove it; `encore bench --meta` writes it again"
        ) from error


def trust_key(request: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """Hash of the settings, tracks, golds and base that a trial was measured with.

    Args:
        request: its `request.json`.
        evaluation: its `evaluation.json`.
    """
    models = evaluation.get("models") or {}
    tracks = [
        [(entry.get("sha256"), entry.get("captions") or [entry.get("caption")]) for entry in request.get(name) or []]
        for name in ("forget", "retain", "holdout")
    ]
    parts = [[evaluation.get(name) for name in MEASURING], [models.get(role) for role in COMPARED], tracks]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def trial_key(run: Path) -> str | None:
    """The `trust_key` of a trial's folder; None if it is not measured.

    Raises:
        InputError: a file of it can't be read.
    """
    paths = run / "request.json", run / EVALUATION
    if not all(path.exists() for path in paths):
        return None
    return trust_key(read_json(paths[0], Request), read_json(paths[1], Evaluation))


def read_trust(folder: Path, trials: Sequence[Path]) -> tuple[list[RowTrust], str]:
    """The rows of a bench's `meta.json`, if they are of what its trials are measured with.

    Args:
        folder: of the bench.
        trials: folders of its trials on all tracks; without one, nothing is known to fit.

    Returns:
        The rows, none if there is no `meta.json` or they do not count; and in that case, a sentence that says why.

    Raises:
        InputError: see `read_meta` and `trial_key`.
    """
    meta = read_meta(folder)
    if not meta.get("rows"):
        return [], ""
    if not trials or any(trial_key(run) != meta.get("key", "") for run in trials):
        changed = "the trials are measured with other settings, models or tracks" if trials else "no such trial is left"
        return [], f"what `encore bench --meta` found does not count any more: {changed}"
    return _rows(meta), ""


def trust_of_run(run: Path, key: str) -> dict[tuple[str, str], RowTrust]:
    """What is known of the rows of a bench's trial, by metric and set; empty for another run, or a broken file.

    Args:
        run: folder of the trial, `BENCH/METHOD/seed-N`.
        key: the `trust_key` of its figures.
    """
    try:
        meta = read_meta(run.resolve().parent.parent)
    except InputError:
        return {}
    return {(row.metric, row.set): row for row in _rows(meta)} if meta.get("key") == key else {}


def _rows(meta: Mapping[str, Any]) -> list[RowTrust]:
    known = {item.name for item in fields(RowTrust)}
    return [RowTrust(**{name: value for name, value in row.items() if name in known}) for row in meta["rows"]]
