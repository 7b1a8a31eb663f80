"""`metrics.json`: rows as JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from encore.api import Result
from encore.errors import InputError
from encore.runs.store import write_json

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
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, Mapping) or found.get("schema") != SCHEMA:
            raise InputError(f"{path} is not a metrics file of schema {SCHEMA}", "write it anew with `encore eval`")
        known = {item.name for item in fields(Result)}
        rows = [Result(**{key: value for key, value in row.items() if key in known}) for row in found["results"]]
        if not all(isinstance(table, Mapping) for row in rows for table in (row.per_track, row.details)):
            raise TypeError("per_track and details must be objects")
        for row in rows:
            if not all(_is_number(figure) for figure in (row.value, row.low, row.high, row.n, *row.per_track.values())):
                raise TypeError(f"a figure of {row.metric}, {row.model}, {row.set} is no number")
        return rows
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"can't read {path} as a metrics file: {error}", "write it anew with `encore eval`") from error


def _is_number(figure: object) -> bool:
    return figure is None or type(figure) in (int, float)  # a bool is none
