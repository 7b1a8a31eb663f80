"""`meta.json` of a bench's folder: which rows tell models that hold the tracks from models that don't."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from encore.errors import InputError
from encore.store.run_folder import read_json
from encore.store.schemas import Meta

SCHEMA = 1
NAME = "meta.json"
Verdict = Literal["yes", "no", "too few models"]


@dataclass(frozen=True)
class RowTrust:
    """What `encore bench --meta` found of one row; see `encore.compare.meta` for the formulas.

    Args:
        metric: name of the row.
        set: its set.
        label: the row's name in tables.
        trusted: whether it tells the models apart: "yes", "no" or "too few models".
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


def read_trust(folder: Path) -> list[RowTrust]:
    """The rows of a bench's `meta.json`; empty if there is none.

    Raises:
        InputError: see `read_meta`.
    """
    known = {item.name for item in fields(RowTrust)}
    return [
        RowTrust(**{key: value for key, value in row.items() if key in known})
        for row in read_meta(folder).get("rows", [])
    ]


def trust_of_run(run: Path) -> dict[tuple[str, str], RowTrust]:
    """What is known of the rows of a bench's trial, by metric and set; empty for another run, or a broken file.

    Args:
        run: folder of the trial, `BENCH/METHOD/seed-N`.
    """
    try:
        return {(row.metric, row.set): row for row in read_trust(run.resolve().parent.parent)}
    except InputError:
        return {}
