"""Atomic file writes that survive a kill at any moment, and validated reading of JSON."""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from encore.errors import InputError

MAX_JSON = 256 << 20  # largest JSON file that is read, bytes
STAGING = ".staging-"  # prefix of the names of unfinished files


def staging_name(path: Path) -> Path:
    """Another name in the same folder, that no other writer uses."""
    return path.with_name(f"{STAGING}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path to write a file to; it replaces `path` when the block ends without an error."""
    staging = staging_name(path)
    with naming(path):
        try:
            yield staging
            staging.chmod(0o644)  # safetensors writes 0600
            sync(staging)
            os.replace(staging, path)
        finally:
            staging.unlink(missing_ok=True)
        sync(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add a path to operating system errors without one, as those of open files."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path, shape: Any = None) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        shape: required type, for pydantic (see `encore.store.schemas`); None accepts any.

    Raises:
        InputError: it is missing, can't be read, is not JSON, or has another type; names the file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or device might never end
            raise InputError(f"{path} is not a regular file")
        if status.st_size > MAX_JSON:
            raise InputError(f"{path} is larger than {MAX_JSON:,} bytes, too large for what it should be")
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is missing", "is this the folder of a complete run?") from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    return parsed_json(data, str(path), shape)


def parsed_json(data: bytes | str, name: str, shape: Any = None) -> Any:
    """Parse untrusted JSON.

    Args:
        data: the text.
        name: of the file, for messages.
        shape: see `read_json`.

    Raises:
        InputError: it is not JSON (NaN and Infinity are not), is nested too deeply, or has another type.
    """
    try:
        value = json.loads(data, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise InputError(f"{name} can't be read as JSON: it is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{name} can't be read as JSON: {error}") from error
    if shape is not None:
        _check_shape(value, name, shape)
    return value


def finite(value: Any) -> Any:
    """A JSON value with None for every float that is not finite."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _check_shape(value: Any, name: str, shape: Any) -> None:
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))
        reason = f"{place}: {str(fault['msg'])[:1].lower()}{str(fault['msg'])[1:]}" if place else "is not a JSON object"
        raise InputError(f"{name} was changed, or was not written by this version of Encore: {reason}") from error
