"""The exceptions that Encore raises.

Each has one sentence on what happened (`message`) and advice (`hint`); the class sets the exit code of the command
line, so that library callers and shell scripts can distinguish the same cases.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

MOST = 1_000
"""Most errors that one message names."""


class EncoreError(Exception):
    """An error that can be explained to the user in one sentence.

    Args:
        message: one sentence, without a trailing newline.
        hint: advice; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def one_line(error: BaseException) -> str:
    """An exception's class and text in one line; the class alone where the text is empty or `str` fails."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # of third-party code
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, to end a sentence with; its class where the text is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")


class UsageError(EncoreError):
    """Invalid use of a command or function: an unknown option, two flags that exclude each other."""

    exit_code = 2


class InputError(EncoreError):
    """An input can't be used: a list, an audio file, a catalogue, a model folder."""

    exit_code = 3


def together(errors: Sequence[InputError]) -> InputError:
    """One error for several, so that all faults of a list are reported at once."""
    if len(errors) == 1:
        return errors[0]
    messages = [error.message for error in errors[:MOST]]
    if len(errors) > MOST:
        messages.append(f"and {len(errors) - MOST:,} more")
    hints = list(dict.fromkeys(error.hint for error in errors if error.hint))
    return InputError(f"{len(errors):,} tracks can't be used: {'; '.join(messages)}", "\n".join(hints[:5]))


class MissingWeightsError(InputError):
    """Pretrained weights are not on disk, and can't be downloaded."""


class GateError(EncoreError):
    """The work was done, but its result failed a gate: missed targets, `--fail-on-found`."""

    exit_code = 4


class ToleranceError(GateError):
    """Figures agree, but not within the verifier's tolerance."""

    exit_code = 5


class NotCheckedError(EncoreError):
    """Part of the verification could not be done: it is neither contradicted nor confirmed."""

    exit_code = 6


class PluginError(EncoreError):
    """A plugin failed to load, to register, or to fulfil its contract."""


class UnknownNameError(UsageError):
    """No plugin of that name is registered."""


class MissingExtraError(EncoreError):
    """A plugin needs packages that are not installed."""


class Interrupted(SystemExit):
    """A signal asked the process to stop. The exit code is that of the shell, 128 + signal.

    Not an `Exception`, so that only clean-up code handles it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number
