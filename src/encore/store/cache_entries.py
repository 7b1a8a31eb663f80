"""List and remove entries of the cache folder; files that Encore did not write are ignored."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from encore.errors import EncoreError, UsageError
from encore.files import STAGING

DAY = 86_400  # seconds
STALE = DAY  # an unfinished file this old was left by a killed process
KINDS = {  # kind -> description
    "tracks": "encoded tracks",
    "files": "hashes and fingerprints of files",
    "evaluations": "results of `encore eval`, per model",
    "fisher": "Fisher information, per model",
    "native": "the native extension, compiled on first use",
}
_PIECE = re.compile(r"[0-9a-f]{2}")
_FILE = re.compile(r"[0-9a-f]{64}(\.[a-z.]+)?")
_INDEX = "files.sqlite3"  # SQLite's log files are beside it
_BUILD = re.compile(r"encore-.+-torch-.+")
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Entry:
    """One cache entry.

    Args:
        path: a file, or the folder of a build.
        kind: one of `KINDS`.
        size: bytes.
        used: time of the last read or write by the file system, seconds since 1970.
    """

    path: Path
    kind: str
    size: int
    used: float


def entries(folder: Path) -> list[Entry]:
    """All entries, the longest unused first; empty without such a folder.

    Raises:
        EncoreError: the folder can't be read.
    """
    try:
        listed = [entry for path, kind in _paths(folder) if (entry := _entry(path, kind)) is not None]
    except OSError as error:
        raise EncoreError(f"the cache {folder} can't be read: {error.strerror or error}") from error
    return sorted(listed, key=lambda entry: entry.used)


def chosen(
    listed: Sequence[Entry], *, kind: str | None = None, older: float | None = None, max_size: int | None = None
) -> list[Entry]:
    """The entries to remove, the longest unused first.

    Args:
        listed: all entries, the longest unused first.
        kind: one of `KINDS`, or "all"; None is all where another argument is given, else none.
        older: only entries unused for this many days.
        max_size: only as many of the longest unused as needed for the rest to have at most this many bytes.

    Raises:
        UsageError: there is no such kind.
    """
    if kind is not None and kind not in (*KINDS, "all"):
        raise UsageError(f"there is no kind of entry {kind!r}", f"the kinds are: {', '.join(KINDS)}, or all")
    if kind is None and older is None and max_size is None:
        return []
    limit = None if older is None else time.time() - older * DAY
    removed = [
        entry for entry in listed if (kind or "all") in ("all", entry.kind) and (limit is None or entry.used < limit)
    ]
    if max_size is None:
        return removed
    left, taken = sum(entry.size for entry in listed), []
    for entry in removed:
        if left <= max_size:
            break
        taken.append(entry)
        left -= entry.size
    return taken


def remove(removed: Sequence[Entry]) -> None:
    """Remove entries; missing ones are skipped.

    Raises:
        EncoreError: an entry can't be removed.
    """
    for entry in removed:
        try:
            if entry.path.is_dir():
                shutil.rmtree(entry.path)
            for path in _parts(entry.path):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise EncoreError(f"{entry.path} can't be removed: {error.strerror or error}") from error


def read_size(text: str) -> int:
    """Parse a number of bytes: "5GB", "1.5 GiB", "500000".

    Raises:
        UsageError: the text is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in UNITS:
        raise UsageError(f"{text!r} is not a size", "for example: 5GB, 500MB, or a number of bytes")
    return int(float(match[1]) * UNITS[match[2].lower()])


def size_text(size: float) -> str:
    """Format a number of bytes: "1.2 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def _paths(folder: Path) -> Iterator[tuple[Path, str]]:
    """Paths with names that Encore writes; links are never followed."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name == _INDEX and path.is_file():
            yield path, "files"
        if path.is_symlink() or not path.is_dir():
            continue
        if _PIECE.fullmatch(path.name):
            yield from ((file, "tracks") for file in path.iterdir() if _is_cache_file(file))
        elif path.name == "native":
            yield from ((build, "native") for build in path.iterdir() if _BUILD.fullmatch(build.name))
        elif path.name in KINDS:
            yield from ((file, path.name) for file in path.rglob("*") if _is_cache_file(file))


def _parts(path: Path) -> list[Path]:
    """The files of one entry: a database includes its logs."""
    return [path, *(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal") if path.name == _INDEX)]


def _is_cache_file(file: Path) -> bool:
    if file.is_symlink() or not file.is_file():
        return False
    if file.name.startswith(STAGING):
        return file.stat().st_mtime < time.time() - STALE
    return bool(_FILE.fullmatch(file.name))


def _entry(path: Path, kind: str) -> Entry | None:
    try:
        if path.is_symlink():
            return None
        parts = path.rglob("*") if path.is_dir() else filter(Path.exists, _parts(path))
        stats = [item.lstat() for item in parts if not item.is_dir()]
    except FileNotFoundError:  # another process removed it
        return None
    if not stats:
        return None
    return Entry(path, kind, sum(s.st_size for s in stats), max(max(s.st_atime, s.st_mtime) for s in stats))
