"""`evaluation.json`: how the figures in `metrics.json` were measured, so that they can be measured again.

Values that differ between equal evaluations (times, the machine) are here, never in `metrics.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encore.data.open_files import file_sha256
from encore.errors import InputError
from encore.store.metrics_json import NAME as METRICS

SCHEMA = 1
NAME = "evaluation.json"


def file_hashes(folder: Path, run: Path | None) -> dict[str, str]:
    """Hashes of the files that belong to an evaluation: `metrics.json`, and the run's records.

    `evaluation.json` is written after `metrics.json`, with its hash: after a kill in between, they don't match.

    Args:
        folder: of `metrics.json`.
        run: the run's folder; None where models were evaluated instead of a run.

    Raises:
        InputError: a file can't be read.
    """
    files = {"metrics": folder / METRICS}
    if run is not None:
        files |= {"request": run / "request.json", "run": run / "run.json"}
    return {f"{name}_sha256": file_sha256(path) for name, path in files.items()}


def check_hashes(how: Mapping[str, Any], folder: Path, run: Path, hint: str) -> None:
    """Check that figures, evaluation, run and request belong together.

    Args:
        how: contents of `evaluation.json`.
        folder: of `metrics.json`.
        run: the run's folder.
        hint: of the error.

    Raises:
        InputError: a file does not match its hash in `evaluation.json`.
    """
    hashes = file_hashes(folder, run).items()
    changed = [f"{name.removesuffix('_sha256')}.json" for name, digest in hashes if how.get(name) != digest]
    if changed:
        verb = "is not the file" if len(changed) == 1 else "are not the files"
        raise InputError(f"{' and '.join(changed)} {verb} that {NAME} was written for", hint)
