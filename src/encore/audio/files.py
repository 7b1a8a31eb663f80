"""Opening what a list or a catalogue points at: inside the allowed folders, regular files only, with caps."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

from encore.audio.text import printable
from encore.errors import InputError
from encore.files import naming


@dataclass(frozen=True)
class Caps:
    """How much text is read before a file is refused, counted after decompression.

    Args:
        total: bytes. lines: lines, blank ones included. line: bytes in one line.
    """

    total: int
    lines: int
    line: int


LIST_CAPS = Caps(total=16 << 20, lines=100_000, line=64 << 10)
CATALOG_CAPS = Caps(total=256 << 20, lines=500_000, line=256 << 10)


def spot(name: str, line: int | None = None) -> str:
    """`list.txt, line 3`: how messages name a place."""
    return printable(name) if line is None else f"{printable(name)}, line {line}"


def locate(raw: str, folders: Sequence[Path], roots: Sequence[Path], where: str) -> Path | None:
    """The real path of the regular file that `raw` names, looked for in `folders` in turn; None where there is none.

    The real path (all symbolic links followed) must lie inside one of `roots`: that one rule covers `..`, absolute
    paths and links that lead out, whether or not something is there.

    Raises:
        InputError: the path leads outside, or what is there is no regular file.
    """
    allowed = [os.path.realpath(root) for root in roots]
    outside = False
    for folder in folders:
        # One name has two spellings where accents are concerned; macOS writes the decomposed one into lists.
        for name in dict.fromkeys((raw, unicodedata.normalize("NFC", raw), unicodedata.normalize("NFD", raw))):
            try:
                real = os.path.realpath(os.path.join(folder, name))
                if not any(_inside(real, root) for root in allowed):
                    outside = True
                elif os.path.lexists(real):
                    _require_regular(os.stat(real).st_mode, raw, f"{where}: ")
                    return Path(real)
            except (OSError, ValueError):  # too long, a NUL, a loop of links, no right to look
                continue
    if outside:
        raise InputError(
            f"{where}: '{printable(raw)}' leads outside {' and '.join(printable(root) for root in allowed)}",
            "only files inside the list's own folder are read; --root FOLDER allows another one",
        )
    return None


def _inside(real: str, root: str) -> bool:
    return real == root or real.startswith(root.rstrip(os.sep) + os.sep)


def _require_regular(mode: int, raw: str, where: str = "") -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    kind = kinds.get(stat.S_IFMT(mode), "a socket or another special file")
    hints = {stat.S_IFDIR: "name the files inside it", stat.S_IFIFO: "a list may come through a pipe as -, from stdin"}
    hint = hints.get(stat.S_IFMT(mode), "only regular files are read")
    raise InputError(f"{where}'{printable(raw)}' is {kind}, not a file", hint)


def open_regular(path: Path | str) -> BufferedReader:
    """Open a file for reading, and nothing but a file: a pipe, device or folder is refused without waiting for it.

    Raises:
        InputError: it is missing, unreadable or not a regular file.
    """
    # O_NONBLOCK: opening a pipe nobody writes to must not hang; it changes nothing for a regular file.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        _require_regular(os.stat(path).st_mode, str(path))  # a device may act on being opened: look first
        handle = os.open(path, flags)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        relative = isinstance(error, FileNotFoundError) and not os.path.isabs(path)
        hint = f"it was looked for from {printable(Path.cwd())}" if relative else ""
        raise InputError(f"'{printable(path)}' can't be read: {reason}", hint) from error
    try:
        _require_regular(os.fstat(handle).st_mode, str(path))
    except InputError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with naming(path), open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_lines(stream: BinaryIO, name: str, caps: Caps, *, compressed: bool = False) -> Iterator[tuple[int, str]]:
    """Lines of UTF-8 text with their numbers from 1, without their ends, read as a stream.

    A byte that is no UTF-8 becomes a surrogate, as in `os.fsdecode`, so that a file name made of such bytes is found.

    Raises:
        InputError: not text, a broken gzip stream, or larger than `caps` (a bomb never reaches memory).
    """
    source = cast(BinaryIO, gzip.GzipFile(fileobj=stream, mode="rb")) if compressed else stream
    total = number = 0
    while True:
        try:
            line = source.readline(caps.line + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{spot(name, number + 1)}: can't be read: {error}") from error
        if not line:
            return
        number += 1
        total += len(line)
        _refuse_excess(len(line), number, total, name, caps)
        if number == 1:
            if line[:2] in {b"\xff\xfe", b"\xfe\xff"}:
                raise InputError(f"{printable(name)} is UTF-16 text", "save it as UTF-8")
            line = line.removeprefix(b"\xef\xbb\xbf")
        if b"\0" in line:
            raise InputError(f"{spot(name, number)}: not text: it has a zero byte", "give a UTF-8 text file")
        yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")


def _refuse_excess(length: int, number: int, total: int, name: str, caps: Caps) -> None:
    if length > caps.line:
        raise InputError(f"{spot(name, number)}: the line is longer than {caps.line:,} bytes")
    if number > caps.lines:
        raise InputError(f"{printable(name)} has more than {caps.lines:,} lines", "split it")
    if total > caps.total:
        raise InputError(f"{printable(name)} holds more than {caps.total:,} bytes of text", "split it")
