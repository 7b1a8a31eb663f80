"""Runs the trials, each in its own process, several at a time; a failure affects only its trial."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from encore.stop_signals import stop_on_signals

if TYPE_CHECKING:  # the worker processes of `encore.compare.ray_trials` import this module, and need no torch
    from encore.compare.plan import Trial

POLL = 0.2  # seconds
LOGS = "logs"
LOG_TAIL = 4096  # bytes at the end of a log that are searched for an error


class Running(Protocol):
    """A trial's process; what `subprocess.Popen` has."""

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""

    def send_signal(self, sig: int, /) -> None:
        """Signal the process, if it still runs."""

    def wait(self) -> object:
        """Wait until the process has ended."""


Start = Callable[[str, Path], Running]
Progress = Callable[["Trial", str], None]


def run_trials(
    trials: Sequence[Trial],
    out: Path,
    *,
    jobs: int = 1,
    start: Start | None = None,
    progress: Progress = lambda trial, status: None,
) -> dict[Trial, str]:
    """Run `encore bench --trial` for each trial; returns the error of each failed trial.

    A trial's output goes to `logs/<trial>.log`. Signals are passed on, so that runs write a checkpoint.

    Args:
        trials: the trials.
        jobs: number of concurrent processes.
        start: starts the process of a trial, given its name and `out`. Default: on this machine, whose CPU cores are
            divided between the jobs, unless OMP_NUM_THREADS is set.
        progress: called with a trial and "started", "done" or an error.

    Raises:
        Interrupted: a signal arrived, and all processes have ended.
    """
    if start is None:
        environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}

        def start(name: str, out: Path) -> Running:
            return start_process(trial_command(name, out), log_file(name, out), environment)

    waiting, running, failed = list(trials), dict["Trial", Running](), dict["Trial", str]()
    sizes: dict[Trial, int] = {}  # of the logs at the start of a process: earlier bytes are of earlier processes
    with stop_on_signals() as stop:
        try:
            while waiting or running:
                if stop:
                    break
                while waiting and len(running) < jobs:
                    trial = waiting.pop(0)
                    log = log_file(trial.name, out)
                    sizes[trial] = log.stat().st_size if log.exists() else 0
                    running[trial] = start(trial.name, out)
                    progress(trial, "started")
                codes = {trial: process.poll() for trial, process in running.items()}
                for trial, code in codes.items():
                    if code is None:
                        continue
                    del running[trial]
                    if code:
                        failed[trial] = _error(log_file(trial.name, out), sizes[trial], code)
                    progress(trial, failed.get(trial, "done"))
                time.sleep(POLL)
        finally:
            for process in running.values():
                process.send_signal(signal.SIGTERM)
            for process in running.values():
                process.wait()
        stop.check()
    return failed


def trial_command(name: str, out: Path) -> list[str]:
    """The command that runs a trial of the bench in folder `out`."""
    return [sys.executable, "-m", "encore", "bench", "--out", str(out), "--trial", name]


def log_file(name: str, out: Path) -> Path:
    """The log of a trial."""
    return out / LOGS / f"{name.replace('/', '-')}.log"


def start_process(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a command whose output is appended to a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment,
            start_new_session=True,  # a terminal's Ctrl-C reaches only this process, which signals the others once
        )  # fmt: skip


def last_error(log: Path, start: int = 0) -> str:
    """The last error in a log from byte `start` on; empty without one, or without a log."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - LOG_TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else ""


def _error(log: Path, start: int, code: int) -> str:
    """The last error in a log from byte `start` on, or how the process ended."""
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}; see {log}"
    return last_error(log, start) or f"exit code {code}; see {log}"
