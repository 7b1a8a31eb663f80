"""A run's progress on stderr: a bar with rate and time left on a terminal, a line every few seconds without one."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from encore.cli import console
from encore.reporter import Reporter
from encore.text import printable

EVERY = 5.0  # seconds between two lines


class LineReporter(Reporter):
    """For logs: one line per stage at most every few seconds, and one when the stage ends."""

    def __init__(self) -> None:
        self._stage = ""
        self._started = self._last = time.monotonic()
        self._first = 0

    def note(self, text: str) -> None:
        console.note(text)

    def progress(self, stage: str, done: int, of: int, info: Mapping[str, Any] | None = None) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._started, self._last, self._first = stage, now, now, done
        if done < of and now - self._last < EVERY and not console.verbose():
            return
        self._last = now
        rate = (done - self._first) / (now - self._started) if now > self._started else 0.0
        left = f", {rate:.1f}/s, {(of - done) / rate:.0f} s left" if rate and done < of else ""
        if of > 1:
            console.note(f"{stage}: {done}/{of}{left}{_figures(info)}")


class BarReporter(Reporter):
    """For a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=Console(stderr=True, markup=False, emoji=False, highlight=False), transient=True,
        )  # fmt: skip
        self._task: Any = None
        self._stage = ""
        self._figures = ""

    def note(self, text: str) -> None:
        self.bar.console.print(printable(text))

    def progress(self, stage: str, done: int, of: int, info: Mapping[str, Any] | None = None) -> None:
        if stage != self._stage:
            if self._task is not None:
                self.bar.remove_task(self._task)
            self._stage, self._figures = stage, ""
            self._task = self.bar.add_task(stage, total=of, rate="", figures="")
        self._figures = _figures(info) or self._figures
        task = self.bar.tasks[-1]
        rate = f"{task.speed:.1f}/s" if task.speed else ""
        self.bar.update(self._task, completed=done, total=of, rate=rate, figures=self._figures)


@contextmanager
def reporting() -> Iterator[Reporter]:
    """The reporter that fits stderr; what libraries warn of while the block runs goes through it too."""
    bar = BarReporter() if sys.stderr.isatty() and not console.quiet() and not console.verbose() else None
    reporter = Reporter() if console.quiet() else bar or LineReporter()

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
        line: str | None = None,
    ) -> None:  # fmt: skip
        text = f"warning: {' '.join(str(message).split())}"
        reporter.note(text) if not console.quiet() else console.warn(text.removeprefix("warning: "))

    with warnings.catch_warnings():
        warnings.showwarning = show
        if bar is None:
            yield reporter
        else:
            with bar.bar:
                yield reporter


def _figures(info: Mapping[str, Any] | None) -> str:
    """What is worth showing beside the bar: the metric, or the last snapshot of forget, retain and holdout."""
    if info and info.get("metric"):
        return f"  {info['metric']}"
    snapshot = (info or {}).get("snapshot")
    if not snapshot:
        return ""
    keys = {"forget": "forget", "target": "target_nll", "memorised": "memorised", "not memorised": "not_memorised"}
    means = {name: sum(snapshot[key].values()) / len(snapshot[key]) for name, key in keys.items() if snapshot[key]}
    return "  " + ", ".join(f"{name} {value:.2f}" for name, value in means.items())
