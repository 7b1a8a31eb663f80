"""Refuses models that contain code, or a configuration that loads code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from encore.errors import InputError

CODE = frozenset({
    ".py", ".pyc", ".pyd", ".pyx", ".so", ".dylib", ".dll", ".exe", ".sh", ".bat", ".jar", ".wasm", ".whl", ".egg",
    ".pkl", ".pickle", ".joblib", ".keras",
})  # fmt: skip
KEYS = frozenset({"auto_map", "custom_pipelines"})  # of a JSON file: names code to load


def check_code(files: Mapping[str, Callable[[], bytes]], where: object) -> None:
    """Refuse a model with code in it, or with a configuration that names code to load.

    Args:
        files: functions that read the files, by name; only JSON is read.
        where: place of the model, for the message.

    Raises:
        InputError: names the file.
    """
    for name, read in files.items():
        path = PurePosixPath(name)
        why = "code, or can hold code" if path.suffix.casefold() in CODE else ""
        if not why and path.suffix.casefold() == ".json":
            try:
                key = _named(json.loads(read()))
            except (ValueError, RecursionError):
                key = "no JSON"
            why = f"a configuration with {key}" if key else ""
        if why:
            raise InputError(
                f"the model of {where} is refused: {name} is {why}", "a model is weights and settings alone"
            )


def _named(value: Any) -> str:
    """A key that names code, anywhere in a value; empty if there is none."""
    if isinstance(value, Mapping):
        return next((key for key in value if key in KEYS), "") or next(filter(None, map(_named, value.values())), "")
    return next(filter(None, map(_named, value)), "") if isinstance(value, list) else ""
