"""Progress: lines without a terminal, a bar with one; stdout never sees it."""

from __future__ import annotations

import warnings

import pytest

from encore.cli import progress
from encore.cli.progress import BarReporter, LineReporter, reporting

LOOK = {
    "snapshot": {"forget": {"a": 1.0, "b": 2.0}, "target_nll": {"a": 4.0}, "memorised": {"c": 0.5}, "not_memorised": {}}
}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_line_every_few_seconds_with_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    reporter = LineReporter()
    for step in range(101):
        clock.now = step * 0.5
        reporter.progress("forget", step, 100, LOOK if step == 50 else None)
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert told.out == ""
    assert len(lines) == 10
    assert lines[0] == "forget: 10/100, 2.0/s, 45 s left"
    assert lines[4] == "forget: 50/100, 2.0/s, 25 s left  forget 1.50, target 4.00, memorised 0.50"
    assert lines[-1] == "forget: 100/100"


def test_a_run_that_only_trains_has_nothing_to_forget(capsys: pytest.CaptureFixture[str]) -> None:
    look = {"forget": {}, "target_nll": {}, "memorised": {}, "not_memorised": {"a": 1.0, "b": 2.0}}
    LineReporter().progress("train", 2, 2, {"snapshot": look})
    assert capsys.readouterr().err == "train: 2/2  not memorised 1.50\n"


def test_a_stage_of_one_unit_says_nothing_and_a_metric_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    reporter = LineReporter()
    reporter.progress("load model", 0, 1)
    reporter.progress("measure", 0, 3, {"metric": "nll"})
    clock.now = 6
    reporter.progress("measure", 1, 3, {"metric": "fad"})
    assert capsys.readouterr().err == "measure: 1/3, 0.2/s, 12 s left  fad\n"


def test_the_bar_escapes_and_keeps_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = BarReporter()
    with reporter.bar:
        reporter.progress("hear tracks", 1, 4)
        reporter.progress("forget", 2, 4, LOOK)
        reporter.progress("forget", 3, 4)
        reporter.note("[bold]\x1b[2J")
        assert [task.description for task in reporter.bar.tasks] == ["forget"]
        assert "forget 1.50" in reporter.bar.tasks[0].fields["figures"]
    told = capsys.readouterr()
    assert told.out == ""
    assert "[bold]\\x1b[2J" in told.err


def test_warnings_of_libraries_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting(), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("the cache\ncan't be written", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: the cache can't be written\n"
