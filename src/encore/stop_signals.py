"""SIGINT, SIGTERM and SIGHUP: the first signal stops the run at the next step, the second ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from encore.errors import Interrupted

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")  # the last does not exist on every system


class StopFlag:
    """A flag that the first signal sets."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def check(self) -> None:
        """Raise `Interrupted` if a signal came."""
        if self.number is not None:
            raise Interrupted(self.number)


def stopping() -> list[signal.Signals]:
    """The signals that stop a process, without those that it was started to ignore (`nohup`)."""
    known = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Catch stopping signals while the block runs (main thread only; elsewhere the flag is never set)."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if flag.number is not None:
            os._exit(128 + number)
        flag.number = number

    before = {number: signal.signal(number, handle) for number in stopping()}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
