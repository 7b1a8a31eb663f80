"""Files that appear whole or not at all, also after a kill at any moment."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STAGING = ".staging-"  # how the name of what is not whole yet begins


def staging_name(path: Path) -> Path:
    """Another name in the same folder, that no other writer uses."""
    return path.with_name(f"{STAGING}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write a file under, which takes the place of `path` once the block ends without an error."""
    staging = staging_name(path)
    try:
        yield staging
        staging.chmod(0o644)  # safetensors writes 0600
        sync(staging)
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have the system put a file, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
