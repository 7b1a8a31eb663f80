"""How a suite is gone through, and what is said of a check."""

from __future__ import annotations

import signal
import warnings
from contextlib import nullcontext

import pytest

from encore.errors import InputError, Interrupted
from encore.testing.core import ContractViolation, Report, Skip, Suite, named, telling


class Subject:
    def undisturbed(self):
        return nullcontext()


def suite(*functions, first=()) -> Suite:
    made = Suite("thing")
    for function in functions:
        made.check(function.__name__, "it does", first=function in first)(function)
    return made


def passes(_):
    warnings.warn("something", stacklevel=1)  # a warning is no fault, also where the tests make it one


def remarks(_):
    return "slowly"


def fails(_):
    raise ContractViolation("it does not")


def skips(_):
    raise Skip("it can't")


def breaks(_):
    raise InputError("no such\nfile", "look again")


def leaves(_):
    raise SystemExit(3)


def test_every_check_runs_whatever_the_others_do():
    outcomes = suite(breaks, leaves, fails, skips, passes, remarks).run(Subject())
    assert [outcome.state for outcome in outcomes] == ["FAILED", "FAILED", "FAILED", "skipped", "passed", "passed"]
    assert [outcome.sentence.partition(" (test_core.py")[0] for outcome in outcomes] == [
        "raised InputError: no such file",
        "raised SystemExit: 3",
        "it does not; the contract: it does",
        "skipped: it can't",
        "it does",
        "it does; slowly",
    ]
    assert "(test_core.py, line" in outcomes[0].said
    report = Report("thing", "a", "", outcomes)
    assert not report.passed
    assert len(report.failed) == 3


def test_a_signal_to_stop_is_no_fault_of_what_is_checked():
    def stopped(_):
        raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        suite(stopped, passes).run(Subject())


def test_nothing_is_asked_of_what_is_not_there():
    outcomes = suite(fails, passes, first=(fails,)).run(Subject())
    assert [outcome.state for outcome in outcomes] == ["FAILED", "skipped"]
    assert outcomes[1].said == "there is nothing to check where 'fails' fails"


def test_named_checks_run_alone_but_for_the_first():
    outcomes = suite(passes, remarks, fails, first=(passes,)).run(Subject(), only={"fails"})
    assert [outcome.check for outcome in outcomes] == ["passes", "fails"]


def test_progress_is_told_before_each_check_and_at_the_end():
    told = []
    suite(passes, remarks).run(Subject(), lambda *given: told.append(given))
    assert told == [("passes", 0, 2), ("remarks", 1, 2), ("", 2, 2)]


def test_what_was_being_done_is_told_with_what_was_raised():
    with pytest.raises(ContractViolation, match="loading it raised ValueError: odd"), telling("loading it"):
        raise ValueError("odd")
    with pytest.raises(Skip), telling("loading it"):
        raise Skip("no")


def test_long_lists_are_cut():
    assert [named(["a"] * n) for n in (0, 1, 2, 3)] == ["", "a", "a and a", "a, a and 1 more"]
