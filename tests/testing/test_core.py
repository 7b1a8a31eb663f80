"""How checks are run, and how their results are reported."""

from __future__ import annotations

import signal
import warnings
from contextlib import nullcontext

import pytest

from encore.errors import InputError, Interrupted
from encore.testing.core import ContractViolation, Report, Skip, during, listed, run_checks


class Subject:
    def undisturbed(self):
        return nullcontext()


def run(*checks, **how):
    for check in checks:
        check.__doc__ = "it does.\n\nMore of it."
    return run_checks(checks, Subject(), **how)


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
    results = run(breaks, leaves, fails, skips, passes, remarks)
    assert [result.state for result in results] == ["FAILED", "FAILED", "FAILED", "skipped", "passed", "passed"]
    assert [result.sentence.partition(" (test_core.py")[0] for result in results] == [
        "raised InputError: no such file",
        "raised SystemExit: 3",
        "it does not; the contract: it does",
        "skipped: it can't",
        "it does",
        "it does; slowly",
    ]
    assert "(test_core.py, line" in results[0].message
    report = Report("thing", "a", "", results)
    assert not report.passed
    assert len(report.failed) == 3


def test_a_signal_to_stop_is_no_fault_of_what_is_checked():
    def stopped(_):
        raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(stopped, passes)


def test_the_others_are_skipped_where_the_first_fails():
    results = run(fails, passes, first=fails)
    assert [result.state for result in results] == ["FAILED", "skipped"]
    assert results[1].message == "it needs the check 'fails', which fails"


def test_named_checks_run_alone_but_for_the_first():
    results = run(passes, remarks, fails, first=passes, only={"fails"})
    assert [result.check for result in results] == ["passes", "fails"]


def test_progress_is_reported_before_each_check_and_at_the_end():
    calls = []
    run(passes, remarks, progress=lambda *given: calls.append(given))
    assert calls == [("passes", 0, 2), ("remarks", 1, 2), ("", 2, 2)]


def test_a_fault_names_the_action_that_raised():
    with pytest.raises(ContractViolation, match="loading it raised ValueError: odd"), during("loading it"):
        raise ValueError("odd")
    with pytest.raises(Skip), during("loading it"):
        raise Skip("no")


def test_long_lists_are_cut():
    assert [listed(["a"] * n) for n in (0, 1, 2, 3)] == ["", "a", "a and a", "a, a and 1 more"]
