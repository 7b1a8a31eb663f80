"""What is written to disk, sent, or started while something runs, by the events that Python's own functions raise."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHANGES = {
    "os.mkdir": "makes the folder", "os.remove": "removes", "os.rename": "renames", "os.rmdir": "removes the folder",
    "os.symlink": "links", "os.link": "links", "os.truncate": "truncates", "socket.connect": "connects to",
    "subprocess.Popen": "starts", "os.system": "runs",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HARMLESS = ("/dev/", "/proc/")

_heard: list[str] | None = None
_installed = False


@contextmanager
def overheard() -> Iterator[list[str]]:
    """What is done in here that can be seen outside: "writes /tmp/x", "connects to …".

    Compiled modules (`__pycache__`), devices, and Encore's own cache are not told.
    """
    global _heard, _installed
    if not _installed:  # a hook can't be taken out again; it does nothing outside this block
        sys.addaudithook(_hear)
        _installed = True
    before, _heard = _heard, []
    try:
        yield _heard
    finally:
        _heard = before


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _heard is None:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, (str, bytes, os.PathLike)) and flags & WRITING:
            _note("writes", os.fsdecode(path))
    elif event in CHANGES:
        _note(CHANGES[event], str(arguments[1] if event == "socket.connect" else arguments[0]))


def _note(what: str, where: str) -> None:
    from encore.settings import cache_folder

    if "__pycache__" in where or where.startswith(HARMLESS) or Path(where).is_relative_to(cache_folder()):
        return
    if _heard is not None:
        _heard.append(f"{what} {where}")
