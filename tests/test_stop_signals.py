"""Signals: the first asks, handlers are put back, other threads are left alone."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import pytest

from encore.stop_signals import Interrupted, StopFlag, stop_on_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_sets_the_flag_and_check_raises(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop
        stop.check()
        os.kill(os.getpid(), number)
        assert stop
        with pytest.raises(Interrupted) as caught:
            stop.check()
    assert caught.value.code == caught.value.exit_code == code
    assert caught.value.name == number.name
    assert signal.getsignal(number) is before


def test_no_except_exception_holds_it() -> None:
    flag = StopFlag()
    flag.number = signal.SIGTERM
    with pytest.raises(SystemExit), contextlib.suppress(Exception):
        flag.check()


def test_another_thread_gets_a_flag_that_is_never_set() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with stop_on_signals() as stop:
            seen.append((bool(stop), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
