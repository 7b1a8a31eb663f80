"""Files that appear whole or not at all, also after a kill at any moment; and JSON that is checked as it is read."""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from encore.errors import InputError

MAX_JSON = 256 << 20  # bytes of a JSON file that is read
STAGING = ".staging-"  # how the name of what is not whole yet begins


def staging_name(path: Path) -> Path:
    """Another name in the same folder, that no other writer uses."""
    return path.with_name(f"{STAGING}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A name to write a file under, which takes the place of `path` once the block ends without an error."""
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
    """Have the system's errors name a path: of a file that is open already it knows but a number."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def sync(path: Path) -> None:
    """Have the system put a file, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path, shape: Any = None) -> Any:
    """Read a JSON file.

    Args:
        shape: the type it must have, for pydantic (see `encore.store.schemas`); None: any.

    Raises:
        InputError: it is missing, can't be read, is not JSON, or has another shape; names the file.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, a device read without end
            raise InputError(f"{path} is not a regular file")
        if found.st_size > MAX_JSON:
            raise InputError(f"{path} is larger than {MAX_JSON:,} bytes, too large for what it should be")
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is missing", "is this the folder of a complete run?") from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    return parsed_json(data, str(path), shape)


def parsed_json(data: bytes | str, name: str, shape: Any = None) -> Any:
    """Parse JSON that somebody else wrote.

    Args:
        name: what to call it in messages. shape: see `read_json`.

    Raises:
        InputError: it is not JSON (NaN and Infinity are not), is nested too deeply, or has another shape.
    """
    try:
        found = json.loads(data, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise InputError(f"{name} can't be read as JSON: it is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{name} can't be read as JSON: {error}") from error
    if shape is not None:
        _check_shape(found, name, shape)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _check_shape(found: Any, name: str, shape: Any) -> None:
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(shape).validate_python(found, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))
        reason = f"{place}: {str(fault['msg'])[:1].lower()}{str(fault['msg'])[1:]}" if place else "is not a JSON object"
        raise InputError(f"{name} was changed, or was not written by this version of Encore: {reason}") from error
