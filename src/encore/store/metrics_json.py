"""`metrics.json`: rows as JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from encore.api import Result
from encore.errors import InputError
from encore.store.run_folder import read_json, write_json
from encore.store.schemas import Metrics

SCHEMA = 1
NAME = "metrics.json"


def metrics_json(results: Sequence[Result]) -> dict[str, Any]:
    """Rows in the schema of `metrics.json`: plain values, every key in every row, nothing but finite numbers."""
    return {"schema": SCHEMA, "results": [asdict(result) for result in results]}


def write_metrics(path: Path, results: Sequence[Result]) -> None:
    """Replace the file, whole or not at all."""
    write_json(path, metrics_json(results))


def read_metrics(path: Path) -> list[Result]:
    """Rows of a file that `write_metrics` wrote; keys of a newer Encore are left out.

    Raises:
        InputError: it can't be read, or is of another schema.
    """
    try:
        found = read_json(path)
        if not isinstance(found, Mapping) or found.get("schema") != SCHEMA:
            raise InputError(f"it is not of schema {SCHEMA}")
        found = read_json(path, Metrics)
    except InputError as error:
        raise InputError(
            f"can't read {path} as a metrics file: {error.message}", "write it anew with `encore eval`"
        ) from error
    known = {item.name for item in fields(Result)}
    return [Result(**{key: value for key, value in row.items() if key in known}) for row in found["results"]]
