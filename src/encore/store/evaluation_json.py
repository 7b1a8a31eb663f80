"""`evaluation.json`: how the figures beside it were measured, so that they can be measured again.

What differs between two equal evaluations (times, the machine) stands here, and never in `metrics.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encore.data.open_files import file_sha256
from encore.errors import InputError
from encore.store.metrics_json import NAME as METRICS

if TYPE_CHECKING:
    pass

SCHEMA = 1
NAME = "evaluation.json"


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
