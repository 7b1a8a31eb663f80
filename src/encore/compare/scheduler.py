"""Runs the cells, each in a process of its own, a few at a time; what one of them breaks stays its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from encore.compare.plan import Trial
from encore.signals import stop_on_signals

POLL = 0.2  # seconds
LOGS = "logs"
SAID = 4096  # bytes of the end of a log that are looked at for what went wrong

Told = Callable[[Trial, str], None]


def run_cells(
    cells: Sequence[Trial], out: Path, *, jobs: int = 1, told: Told = lambda cell, what: None
) -> dict[Trial, str]:
    """Run `encore bench --cell` for each; returns what went wrong, by cell.

    A cell's output goes to `logs/<cell>.log`. The processor's cores are shared out between the jobs, unless
    OMP_NUM_THREADS says otherwise. A signal is passed on, so that runs keep a checkpoint to go on from.

    Args:
        jobs: processes at once. told: called with "started", "done" or what went wrong.

    Raises:
        Interrupted: a signal came, and every process has ended.
    """
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}
    waiting, running, failed = list(cells), dict[Trial, subprocess.Popen[bytes]](), dict[Trial, str]()
    sizes: dict[Trial, int] = {}  # of the logs when a process began: what stands before is of an earlier one
    with stop_on_signals() as stop:
        try:
            while waiting or running:
                if stop:
                    break
                while waiting and len(running) < jobs:
                    cell = waiting.pop(0)
                    sizes[cell] = _log(cell, out).stat().st_size if _log(cell, out).exists() else 0
                    running[cell] = _start(cell, out, environment)
                    told(cell, "started")
                for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                    code = running.pop(cell).returncode
                    if code:
                        failed[cell] = _complaint(_log(cell, out), sizes[cell], code)
                    told(cell, failed.get(cell, "done"))
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
            start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which tells the others once
        )  # fmt: skip


def _log(cell: Trial, out: Path) -> Path:
    return out / LOGS / f"{cell.name.replace('/', '-')}.log"


def _complaint(log: Path, start: int, code: int) -> str:
    """The last error that a process told from byte `start` on, or how it ended."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - SAID))
        lines = file.read().decode("utf-8", "replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}; see {log}"
    return errors[-1] if errors else f"exit code {code}; see {log}"
