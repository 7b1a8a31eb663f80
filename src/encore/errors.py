"""Every exception Encore raises on purpose.

Each says what happened in one sentence (`message`) and what to do about it (`hint`); the class carries the exit
code of the command line, so that a caller of the library and a shell script can tell the same cases apart.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

MOST = 1_000
"""Errors that one message names."""


class EncoreError(Exception):
    """Something went wrong that the user can be told about in one sentence.

    Args:
        message: one sentence, no trailing newline.
        hint: what to do about it; empty where there is nothing to advise.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def one_line(error: BaseException) -> str:
    """An exception's class and text in one line; the class alone where it has no text, or raises when asked for it."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # of third-party code
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class UsageError(EncoreError):
    """The command was called in a way that can't work: an unknown option, two flags that exclude each other."""

    exit_code = 2


class InputError(EncoreError):
    """What the user gave to read can't be used: a list, an audio file, a catalogue, a model folder."""

    exit_code = 3


def together(errors: Sequence[InputError]) -> InputError:
    """One error that names all of them: what is wrong with a list is said at once, not one file a run."""
    if len(errors) == 1:
        return errors[0]
    messages = [error.message for error in errors[:MOST]]
    if len(errors) > MOST:
        messages.append(f"and {len(errors) - MOST:,} more")
    hints = list(dict.fromkeys(error.hint for error in errors if error.hint))
    return InputError(f"{len(errors):,} tracks can't be used: {'; '.join(messages)}", "\n".join(hints[:5]))


class MissingWeightsError(InputError):
    """Pretrained weights are not on disk, and can't be fetched."""


class GateError(EncoreError):
    """The work was done, and its result failed a gate: utility collapse, `--fail-under`."""

    exit_code = 4


class ToleranceError(GateError):
    """Figures agree, but less closely than the verifier asked for."""

    exit_code = 5


class NotCheckedError(EncoreError):
    """Part of what was to be checked could not be: nothing contradicts it, and nothing confirms it."""

    exit_code = 6


class PluginError(EncoreError):
    """A plugin failed to load, to register, or to keep its contract."""


class UnknownNameError(UsageError):
    """No plugin of that name is registered."""


class MissingExtraError(EncoreError):
    """A plugin needs packages that are not installed."""


class Interrupted(SystemExit):
    """A signal asked the process to stop. Its code is the shell's, 128 + signal.

    No `except Exception` catches it, so that everything on the way out is cleaned up and nothing goes on.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number
