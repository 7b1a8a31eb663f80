"""List the runs in a folder with their states, from their files; nothing is loaded or measured."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from encore.errors import EncoreError, InputError
from encore.results.targets import summary, targets_met
from encore.store import schemas
from encore.store.dates import utc
from encore.store.metrics_json import NAME as METRICS
from encore.store.metrics_json import read_metrics
from encore.store.run_folder import in_use, read_json

REQUEST, RUN = "request.json", "run.json"


@dataclass(frozen=True)
class RunLine:
    """One run.

    Args:
        name: its folder, relative to the searched folder.
        date: start time, UTC, ISO 8601; without one, when its request was written.
        method: name of the method.
        model: name or folder of the base model.
        tracks: number of tracks to forget.
        state: "running", "unfinished", "not measured", "measured", "collapsed" or "unreadable".
        forget: forget targets met, as "4/5"; empty where none could be tested.
        retain: the same for retain targets.
        size: bytes on disk.
        why: why it is unreadable.
    """

    name: str
    date: str = ""
    method: str = ""
    model: str = ""
    tracks: int = 0
    state: str = "unreadable"
    forget: str = ""
    retain: str = ""
    size: int = 0
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


def find_runs(folder: Path) -> list[RunLine]:
    """Every run in a folder and its subfolders, the newest first.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", "name the folder of the runs; `encore forget` makes runs/")
    lines = [read_run_line(path, folder) for path in _run_folders(folder)]
    return sorted(lines, key=lambda line: (line.date, line.name), reverse=True)


def read_run_line(run: Path, above: Path | None = None) -> RunLine:
    """The state of one run; errors of its files are in the result.

    Args:
        run: its folder.
        above: base of the run's name; without it, the name is the path as given.
    """
    name = str(run if above is None or run == above else run.relative_to(above))
    size = _size(run)
    try:
        request = read_json(run / REQUEST, schemas.Request)
        record = read_json(run / RUN, schemas.Run) if (run / RUN).exists() else {}
        model, method, tracks = request["model"]["name"], request["method"], len(request["forget"])
        met = _targets(run / METRICS) if (run / METRICS).exists() else {}
        return RunLine(
            name, _date(run, request), str(method), str(model), tracks, _state(run, record, bool(met)),
            met.get("forget", ""), met.get("retain", ""), size,
        )  # fmt: skip
    except EncoreError as error:
        return RunLine(name, size=size, why=error.message)
    except KeyError as error:
        return RunLine(name, size=size, why=f"{run / REQUEST} has no {error}: this version of Encore did not write it")
    except (TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        return RunLine(name, size=size, why=f"{run / REQUEST} is not of this version of Encore: {error!r}")


def _run_folders(folder: Path) -> Iterator[Path]:
    """Folders with a request; their subfolders are not searched."""
    for path, folders, files in os.walk(folder):
        if REQUEST in files:
            folders.clear()
            yield Path(path)
        else:
            folders[:] = sorted(name for name in folders if not name.startswith("."))


def _state(run: Path, record: Mapping[str, Any], measured: bool) -> str:
    if not record:
        return "running" if in_use(run) else "unfinished"
    if record.get("outcome", {}).get("collapsed"):
        return "collapsed"
    return "measured" if measured else "not measured"


def _targets(metrics: Path) -> dict[str, str]:
    counts = targets_met(summary(read_metrics(metrics)))
    return {name: f"{met}/{judged}" if judged else "" for name, (met, judged) in counts.items()}


def _date(run: Path, request: Mapping[str, Any]) -> str:
    begun = request.get("begun")
    if isinstance(begun, str):
        return begun
    return utc(datetime.fromtimestamp((run / REQUEST).stat().st_mtime, UTC))


def _size(folder: Path) -> int:
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:  # it was removed meanwhile
                continue
    return total
