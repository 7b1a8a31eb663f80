"""Output: data on stdout, everything else on stderr; user text is never markup.

Titles and file names come from strangers. They are printed with control characters escaped, so that none of them
can move the cursor, forge a second line or reverse the text; rich never sees them as markup.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

from encore.errors import EncoreError, one_line

_verbosity = {"quiet": False, "verbose": False}
ZERO_WIDTH_JOINER = "\N{ZERO WIDTH JOINER}"  # not printable by itself, but emoji are made with it


def escape(text: object) -> str:
    """Text with every control character, line break, surrogate and direction mark as a visible escape."""
    return "".join(
        char if char.isprintable() or char == ZERO_WIDTH_JOINER else char.encode("unicode_escape").decode()
        for char in str(text)
    )


def data(text: object = "") -> None:
    """One line of output that a program may read, escaped."""
    print(escape(text))


def data_json(value: Any) -> None:
    """A JSON document on stdout; not a number becomes null, since JSON has no NaN."""
    import json

    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace") + b"\n")


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """A table on stdout: fitted to a terminal, as wide as it needs to be in a pipe.

    Args:
        headers: the columns' titles. rows: one cell per column; None is shown empty.
        right: titles of the columns that are aligned to the right (numbers).
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in headers:
        shown.add_column(Text(header), justify="right" if header in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text("" if cell is None else escape(cell)) for cell in row))
    console = Console(file=sys.stdout, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    console.print(shown)


def set_verbosity(*, quiet: bool = False, verbose: bool = False) -> None:
    """Set by -q and -v; -q wins."""
    _verbosity.update(quiet=quiet, verbose=verbose and not quiet)


def quiet() -> bool:
    """Whether progress and notes are left out."""
    return _verbosity["quiet"]


def verbose() -> bool:
    """Whether every step is shown, and tracebacks are."""
    return _verbosity["verbose"]


def note(message: str) -> None:
    """Progress, on stderr; nothing with -q."""
    if not quiet():
        _stderr(escape(message))


def warn(message: str, hint: str = "") -> None:
    """`warning:` one sentence, then what to do about it, on stderr."""
    _stderr(f"warning: {escape(message)}")
    _hint(hint)


def fail(error: BaseException) -> int:
    """Print an error on stderr: `error:` one sentence, then `hint:`. Returns the exit code.

    With `ENCORE_DEBUG=1` the traceback comes first.
    """
    if debugging():
        trace(error)
    if isinstance(error, EncoreError):
        # A plugin's own class may lack what Encore's have, and must not end well either.
        _stderr(f"error: {escape(getattr(error, 'message', one_line(error)))}")
        _hint(str(getattr(error, "hint", "")))
        return error.exit_code if type(error.exit_code) is int and 0 < error.exit_code < 256 else 1
    if isinstance(error, OSError) and error.strerror:
        # a machine's or a disk's fault, not Encore's
        _stderr(f"error: {escape(_where(error) + error.strerror.lower())}")
        return 1
    _stderr(f"error: {escape(one_line(error))}")
    if not debugging():
        _hint("this was not expected; ENCORE_DEBUG=1 shows where it happened")
    return 1


def _where(error: OSError) -> str:
    names = [
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes, os.PathLike))
    ]
    return f"{' -> '.join(names)}: " if names else "a file, or the output, can't be read or written: "


def trace(error: BaseException) -> None:
    """The traceback of an error, on stderr."""
    _stderr("".join(traceback.format_exception(error)).rstrip())


def debugging() -> bool:
    """Whether `ENCORE_DEBUG` or -v asks for tracebacks."""
    return verbose() or os.environ.get("ENCORE_DEBUG", "") not in ("", "0")


def _hint(hint: str) -> None:
    """A hint may have several lines (a list of pairs); they are indented, so that none can pass for one of ours."""
    if hint:
        _stderr("hint: " + "\n      ".join(escape(line) for line in hint.split("\n")))


def _stderr(text: str) -> None:
    with contextlib.suppress(BrokenPipeError, ValueError):  # the pipe was closed
        print(text, file=sys.stderr, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
