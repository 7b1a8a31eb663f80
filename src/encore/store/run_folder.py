"""The run folder: atomic writes, one writer at a time, verified checkpoints.

Every file is written under a staging name, synced and renamed, and the folder synced: after a kill at any point each
name holds either its old or its new content. `run.json` is written last; its presence means the run is complete.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError
from typing_extensions import TypedDict

from encore.data.open_files import file_sha256
from encore.errors import EncoreError, InputError, UsageError
from encore.files import STAGING, atomic_write, finite, staging_name, sync
from encore.files import read_json as read_json  # re-exported
from encore.store import schemas

if TYPE_CHECKING:
    from torch import Tensor

LOCK, OWNER, LOG, CHECKPOINTS = ".lock", ".owner", "log.jsonl", "checkpoints"
KEEP_CHECKPOINTS = 2
MANIFEST = "manifest.json"


class Manifest(TypedDict):
    """Of a checkpoint: identity of the run, and the hash of each file by name."""

    identity: str
    sha256: dict[str, str]


class RunFolder:
    """A run's folder, locked by one process at a time.

    Args:
        path: the folder; created if missing.
        resume: continue the unfinished run in it.

    Raises:
        EncoreError: another process uses it, or it can't be written.
        UsageError: it holds a complete run, or an unfinished one without `resume`, or none with `resume`.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = path
        self._hold = locked(path)
        self._hold.__enter__()
        try:
            _refuse_content(path, resume)
            with writing(path):
                _drop_torn_line(path / LOG)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the folder."""
        self._hold.__exit__(None, None, None)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file atomically."""
        write_json(self.path / name, value)

    @contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """A folder to fill; it replaces `name` when the block ends without an error."""
        with staged_folder(self.path / name) as folder:
            yield folder

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to `log.jsonl`; values that are not finite become null."""
        with writing(self.path), open(self.path / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record), allow_nan=False) + "\n")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Create the folder and lock it for this process; unfinished files of a killed process are removed.

    Raises:
        EncoreError: another process uses it (named by its id), or it can't be written.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = _locked(path)
        try:
            orphans = [*path.glob(f"{STAGING}*"), *path.glob(f"{CHECKPOINTS}/{STAGING}*")]
            if (path / "run.json").exists():  # the process was killed before it removed them
                orphans += path.glob(CHECKPOINTS)
            for orphan in orphans:
                remove(orphan)
            write_bytes(path / OWNER, f"process {os.getpid()}".encode())
        except BaseException:
            lock.release()
            raise
    try:
        yield
    finally:
        (path / OWNER).unlink(missing_ok=True)
        lock.release()


def check_occupied(path: Path, *, resume: bool = False) -> None:
    """Raise the errors of `RunFolder` in advance, without writing anything."""
    check_folder(path)
    if not (path / LOCK).exists():
        return _refuse_content(path, resume)
    with writing(path):
        lock = _locked(path)
    try:
        return _refuse_content(path, resume)
    finally:
        lock.release()


def check_folder(path: Path) -> None:
    """Check that no file is where a folder is to be made.

    Raises:
        EncoreError: the path, or part of it, is a file.
    """
    existing = next((part for part in (path, *path.parents) if os.path.lexists(part)), None)
    if existing is not None and not existing.is_dir():
        with writing(path):
            raise OSError(errno.EEXIST if existing == path else errno.ENOTDIR, "")


def complete_run(run: Path) -> tuple[Any, Any]:
    """The contents of `run.json` and `request.json` of a run that has forgotten tracks.

    Raises:
        InputError: it is no run, it did not finish, it is one of `encore train`, or a file of it can't be read.
    """
    if not (run / "request.json").exists():
        raise InputError(f"{run} is not the folder of a run", "name a folder that `encore forget` wrote")
    request = read_json(run / "request.json", schemas.Request)
    if not request.get("forget", True):
        raise InputError(
            f"{run} is a run of `encore train`, which forgot nothing",
            f"measure its model: encore eval --model {run} --tracks LIST",
        )
    if not (run / "run.json").exists():
        raise InputError(f"the run in {run} did not finish", f"continue it: encore forget … --out {run} --resume")
    return read_json(run / "run.json", schemas.Run), request


def in_use(path: Path) -> bool:
    """Whether a process uses the folder now. Writes nothing."""
    if not (path / LOCK).exists():
        return False
    try:
        _locked(path).release()
    except (EncoreError, OSError):
        return True
    return False


def _locked(path: Path) -> BaseFileLock:
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = _read_text(path / OWNER) or "another process"
        raise EncoreError(f"{path} is in use by {owner}", "wait for it, or choose another --out") from None
    return lock


def _refuse_content(path: Path, resume: bool) -> None:
    started = (path / "request.json").exists()
    if (path / "run.json").exists():
        raise UsageError(f"{path} already holds a complete run", "choose another --out, or delete that folder")
    if started and not resume:
        raise UsageError(f"{path} holds a run that did not finish", "use --resume, or choose another --out")
    if resume and not started:
        raise UsageError(f"{path} holds no run to resume", "start it without --resume")
    if (
        not started
        and path.is_dir()
        and any(p.name not in (LOCK, OWNER) and not _is_staging(p) for p in path.iterdir())
    ):
        raise UsageError(f"{path} is not empty and holds no run", "choose another --out")


def _is_staging(path: Path) -> bool:
    return path.name.startswith(STAGING)


def _drop_torn_line(log: Path) -> None:
    """Remove the incomplete last line that a killed process left."""
    if log.is_symlink():  # its target is not part of this run
        log.unlink()
    if log.is_file():
        whole, newline, _ = log.read_bytes().rpartition(b"\n")
        os.truncate(log, len(whole) + len(newline))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn operating system errors on writing into an `EncoreError` of one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else _os_error(error)
        if number is None:
            raise
        reason = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EFBIG: "the file would be larger than allowed",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "permission denied",
            errno.ENOTDIR: "part of the path is a file",
            errno.EEXIST: "a file of that name is in the way",
            errno.EISDIR: "a folder of that name is in the way",
        }.get(number, os.strerror(number).lower())
        space = "free some space or " if number in (errno.ENOSPC, errno.EDQUOT) else ""
        raise EncoreError(f"can't write {path}: {reason}", f"{space}choose another --out") from error


def _os_error(error: SafetensorError) -> int | None:
    """The system's error number, which safetensors has in its message only: "… (os error 28)"."""
    match = re.search(r"os error (\d+)", str(error))
    return int(match[1]) if match else None


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file's content atomically."""
    with writing(path), atomic_write(path) as staging:
        staging.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically; NaN is an error."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def remove(path: Path) -> None:
    """Remove a folder with its contents, a file, or a link (not its target)."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it replaces `path` when the block ends without an error."""
    staging = staging_name(path)
    with writing(path):
        staging.mkdir(parents=True)
        try:
            yield staging
            for file in staging.rglob("*"):
                if file.is_file():
                    file.chmod(0o644)  # safetensors writes 0600
                sync(file)
            sync(staging)
            if os.path.lexists(path):
                remove(path)
            os.replace(staging, path)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        sync(path.parent)


def preflight(folder: Path, needed: int) -> None:
    """Check that a folder can be written, with `needed` bytes free.

    Raises:
        EncoreError: it can't; the message names the needed and the free bytes.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise EncoreError(
            f"{folder} needs {needed:,} bytes for the model and its checkpoints, and {free:,} are free",
            "free some space or choose another --out",
        )
    if not os.access(existing, os.W_OK):
        raise EncoreError(f"can't write {folder}: permission denied", "choose another --out")


class Checkpoints:
    """Numbered checkpoint folders of a run, each with the hash of every file in it; the newest two are kept.

    Args:
        folder: parent of the checkpoints.
        identity: of the run (model, list, options); checkpoints of another identity are ignored.
        warn: called with a sentence about a damaged checkpoint.
    """

    def __init__(self, folder: Path, identity: str, warn: Callable[[str], None] = lambda _: None) -> None:
        self.folder = folder
        self.identity = identity
        self.warn = warn

    def save(self, number: int, fill: Callable[[Path], None]) -> None:
        """Write checkpoint `number` by calling `fill` with an empty folder; remove the oldest ones."""
        self.folder.mkdir(exist_ok=True)
        with staged_folder(self.folder / f"{number:09d}") as staging:
            fill(staging)
            hashes = {file.name: file_sha256(file) for file in sorted(staging.iterdir())}
            write_json(staging / MANIFEST, {"identity": self.identity, "sha256": hashes})
        for old in self._all()[:-KEEP_CHECKPOINTS]:
            shutil.rmtree(old)

    def latest(self) -> Path | None:
        """The newest checkpoint whose files are all intact; None without one."""
        for folder in reversed(self._all()):
            if self._intact(folder):
                return folder
            self.warn(f"the checkpoint {folder} is damaged: an earlier one is used, or the run starts over")
        return None

    def discard(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("[0-9]*") if path.is_dir()) if self.folder.exists() else []

    def _intact(self, folder: Path) -> bool:
        try:
            manifest = read_json(folder / MANIFEST, Manifest)
            return manifest["identity"] == self.identity and all(
                file_sha256(folder / name) == expected for name, expected in manifest["sha256"].items()
            )
        except (OSError, ValueError, InputError):
            return False


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of a run.

    Raises:
        InputError: it is missing or damaged.
    """
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} can't be read as safetensors: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
