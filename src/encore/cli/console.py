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
from encore.text import printable

_verbosity = {"quiet": False, "verbose": False}


def data(text: object = "") -> None:
    """One line of output that a program may read, escaped."""
    print(printable(text))


def data_json(value: Any) -> None:
    """A JSON document on stdout; not a number becomes null, since JSON has no NaN."""
    import json

    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:
        from encore.files import finite

        text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace") + b"\n")


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """A table on stdout: fitted to a terminal, as wide as it needs to be in a pipe.

    Args:
        headers: the columns' titles.
        rows: one cell per column; None is shown empty.
        right: titles of the columns that are aligned to the right (numbers).
    """
    cells = [["" if cell is None else printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _fitted_table(headers, cells, right)
        return
    from rich.cells import cell_len  # the rest of rich costs a fifth of a listing's time

    widths = [max(map(cell_len, column)) for column in zip(headers, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        spaces = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        columns = zip(headers, row, spaces, strict=True)
        return "   ".join(space + cell if header in right else cell + space for header, cell, space in columns)

    rule = "─" * (sum(widths) + 3 * (len(widths) - 1))
    print(line(headers), rule, *map(line, cells), sep="\n")


def _fitted_table(headers: Sequence[str], cells: Iterable[Sequence[str]], right: Sequence[str]) -> None:
    """Columns are narrowed, and cells folded, until the table fits the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in headers:
        table.add_column(Text(header), justify="right" if header in right else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    Console(markup=False, emoji=False, highlight=False).print(table)


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
        _stderr(printable(message))


def warn(message: str, hint: str = "") -> None:
    """`warning:` one sentence, then what to do about it, on stderr."""
    _stderr(f"warning: {printable(message)}")
    _hint(hint)


def fail(error: BaseException) -> int:
    """Print an error on stderr: `error:` one sentence, then `hint:`. Returns the exit code.

    With `ENCORE_DEBUG=1` the traceback comes first.
    """
    if debugging():
        trace(error)
    if isinstance(error, EncoreError):
        # A plugin's own class may lack what Encore's have, and must not end well either.
        _stderr(f"error: {printable(getattr(error, 'message', one_line(error)))}")
        _hint(str(getattr(error, "hint", "")))
        return error.exit_code if type(error.exit_code) is int and 0 < error.exit_code < 256 else 1
    if isinstance(error, OSError) and error.strerror:
        # a machine's or a disk's fault, not Encore's
        _stderr(f"error: {printable(_where(error) + error.strerror.lower())}")
        return 1
    _stderr(f"error: {printable(one_line(error))}")
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
        _stderr("hint: " + "\n      ".join(printable(line) for line in hint.split("\n")))


def _stderr(text: str) -> None:
    with contextlib.suppress(BrokenPipeError, ValueError):  # the pipe was closed
        print(text, file=sys.stderr, flush=True)
