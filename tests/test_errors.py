"""The exit codes are part of the command line's contract: shell scripts rely on them."""

import pytest

from encore import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.EncoreError, 1),
        (errors.UsageError, 2),
        (errors.UnknownNameError, 2),
        (errors.InputError, 3),
        (errors.GateError, 4),
        (errors.ToleranceError, 5),
        (errors.NotCheckedError, 6),
        (errors.PluginError, 1),
        (errors.MissingExtraError, 1),
    ],
)
def test_exit_codes(error, code):
    assert error.exit_code == code
    assert issubclass(error, errors.EncoreError)


def test_message_and_hint():
    error = errors.InputError("the list is empty", "add a line")
    assert (str(error), error.message, error.hint) == ("the list is empty", "the list is empty", "add a line")
    assert errors.InputError("the list is empty").hint == ""
