"""Commands of Encore in processes that are forked from one that has torch loaded, which spares each the import."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([
    "pytest", "matplotlib.backends.backend_svg", "encore.backends.musicgen", "encore.cli.app", "encore.compare.trial",
    "encore.embedders.latents", "encore.methods.graddiff", "encore.pre_encoding",
])  # fmt: skip


class Forked:
    """An `encore` process; has what is used of `subprocess.Popen`.

    Args:
        arguments: of the command, without `encore`.
        log: file that stdout and stderr are appended to.
        environment: variables that are added to this process's.
        before: called in the process first; a function of a module.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        log: Path,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        words, variables = [str(word) for word in arguments], {**os.environ, **(environment or {})}
        self._process = CONTEXT.Process(target=_run, args=(words, log.resolve(), os.getcwd(), variables, before))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self.poll()
        assert code is not None, "the process still runs"
        return code


def _run(
    arguments: list[str], log: Path, folder: str, variables: dict[str, str], before: Callable[[], None] | None
) -> None:
    os.setsid()
    os.chdir(folder)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ.clear()
    os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if before:
        before()
    from encore.cli import app

    sys.argv = ["encore", *arguments]
    try:
        app.main()
    except SystemExit as leaving:  # as any process ends, not at once: what it holds is given up in Python's order
        ctypes.pythonapi.Py_Exit(leaving.code)
