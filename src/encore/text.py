"""Make untrusted text safe to print, to write into a CSV, and to tokenise."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

MAX_CAPTION = 2_000
"""Longest caption, in characters; text encoders read a few hundred tokens."""

MAX_CANDIDATES = 20_000
"""Most names compared in a search for similar names: difflib is quadratic in their length."""

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# Categories that move the cursor, hide text or reorder it: control, format (bidi marks), surrogates, line separators.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Format characters that emoji and many scripts need; they neither reorder nor hide anything.
_JOINERS = frozenset("\u200c\u200d")


def printable(text: object) -> str:
    """`text` with all characters escaped that a terminal would act on instead of show.

    Control characters, bidirectional marks, line separators and the surrogates that stand for undecodable bytes of a
    file name (`os.fsdecode`) become `\\n`, `\\x1b`, `\\u202e`; letters, emoji and brackets stay. The result encodes
    to UTF-8. It says nothing about markup: print it with rich's markup off.
    """
    return "".join(_escape(char) if _hidden(char) else char for char in str(text))


def _hidden(char: str) -> bool:
    return char not in _JOINERS and unicodedata.category(char) in _UNPRINTABLE


def _escape(char: str) -> str:
    code = ord(char)
    if char in _SHORT:
        return _SHORT[char]
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def csv_cell(text: object) -> str:
    """`text` as a cell that no spreadsheet evaluates: a formula gets an apostrophe before its first character.

    Numbers keep their sign (-1.5 stays a number).
    """
    cell = printable(text)
    if cell.lstrip(" ")[:1] in {"=", "+", "-", "@"} or str(text)[:1] in {"\t", "\r", "\n"}:
        try:
            float(cell)
        except ValueError:
            return "'" + cell
    return cell


def clean_caption(text: str) -> str:
    """One line of valid Unicode, at most `MAX_CAPTION` characters; control characters become spaces."""
    valid = text.encode("utf-8", "replace").decode("utf-8")
    spaced = "".join(" " if unicodedata.category(char) in {"Cc", "Zl", "Zp"} else char for char in valid)
    return " ".join(spaced.split())[:MAX_CAPTION].rstrip()


def counted(count: int, noun: str) -> str:
    """`1 track`, `2 tracks`, `1,000 tracks`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def near(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` names similar to `name` in any case, best first."""
    by_fold: dict[str, str] = {}
    for candidate in known:
        by_fold.setdefault(candidate.casefold(), candidate)
        if len(by_fold) >= MAX_CANDIDATES:
            break
    return [by_fold[fold] for fold in difflib.get_close_matches(name.casefold(), by_fold, n=count, cutoff=0.6)]


def did_you_mean(names: Iterable[str]) -> str:
    """`did you mean 'a' or 'b'?`; empty without names."""
    quoted = [f"'{printable(name)}'" for name in names]
    return f"did you mean {' or '.join(quoted)}?" if quoted else ""
