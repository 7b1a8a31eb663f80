"""Runs the cells, each in its own process, several at a time; a failure affects only its cell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from encore.compare.plan import Trial
from encore.stop_signals import stop_on_signals

POLL = 0.2  # seconds
LOGS = "logs"
LOG_TAIL = 4096  # bytes at the end of a log that are searched for an error

Progress = Callable[[Trial, str], None]


def run_cells(
    cells: Sequence[Trial], out: Path, *, jobs: int = 1, progress: Progress = lambda cell, status: None
) -> dict[Trial, str]:
    """Run `encore bench --cell` for each cell; returns the error of each failed cell.

    A cell's output goes to `logs/<cell>.log`. The CPU cores are divided between the jobs, unless OMP_NUM_THREADS is
    set. Signals are passed on, so that runs write a checkpoint.

    Args:
        cells: the cells.
        jobs: number of concurrent processes.
        progress: called with a cell and "started", "done" or an error.

    Raises:
        Interrupted: a signal arrived, and all processes have ended.
    """
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}
    waiting, running, failed = list(cells), dict[Trial, subprocess.Popen[bytes]](), dict[Trial, str]()
    sizes: dict[Trial, int] = {}  # of the logs at the start of a process: earlier bytes are of earlier processes
    with stop_on_signals() as stop:
        try:
            while waiting or running:
                if stop:
                    break
                while waiting and len(running) < jobs:
                    cell = waiting.pop(0)
                    sizes[cell] = _log(cell, out).stat().st_size if _log(cell, out).exists() else 0
                    running[cell] = _start(cell, out, environment)
                    progress(cell, "started")
                for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                    code = running.pop(cell).returncode
                    if code:
                        failed[cell] = _error(_log(cell, out), sizes[cell], code)
                    progress(cell, failed.get(cell, "done"))
                time.sleep(POLL)
        finally:
            for process in running.values():
                process.send_signal(signal.SIGTERM)
            for process in running.values():
                process.wait()
        stop.check()
    return failed


def _start(cell: Trial, out: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    log = _log(cell, out)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "encore", "bench", "--out", str(out), "--cell", cell.name]
    with log.open("ab") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment,
            start_new_session=True,  # a terminal's Ctrl-C reaches only this process, which signals the others once
        )  # fmt: skip


def _log(cell: Trial, out: Path) -> Path:
    return out / LOGS / f"{cell.name.replace('/', '-')}.log"


def _error(log: Path, start: int, code: int) -> str:
    """The last error in a log from byte `start` on, or how the process ended."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - LOG_TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}; see {log}"
    return errors[-1] if errors else f"exit code {code}; see {log}"
