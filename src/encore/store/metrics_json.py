"""Read and write `metrics.json`."""

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
    """Rows in the schema of `metrics.json`: plain values, every key in every row, finite numbers only."""
    return {"schema": SCHEMA, "results": [asdict(result) for result in results]}


def write_metrics(path: Path, results: Sequence[Result]) -> None:
    """Replace the file atomically."""
    write_json(path, metrics_json(results))


def read_metrics(path: Path) -> list[Result]:
    """Read the rows of a file written by `write_metrics`; keys of a newer Encore are ignored.

    Raises:
        InputError: it can't be read, or has another schema.
    """
    try:
        metrics = read_json(path)
        if not isinstance(metrics, Mapping) or metrics.get("schema") != SCHEMA:
            raise InputError(f"it is not of schema {SCHEMA}")
        metrics = read_json(path, Metrics)
    except InputError as error:
        raise InputError(
            f"can't read {path} as a metrics file: {error.message}", "write it again with `encore eval`"
        ) from error
    known = {item.name for item in fields(Result)}
    return [Result(**{key: value for key, value in row.items() if key in known}) for row in metrics["results"]]
