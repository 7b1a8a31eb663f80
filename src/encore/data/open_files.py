"""Safe opening of files that a list or a catalogue names: regular files in allowed folders, with size limits."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

from encore.data.path_variants import alike, forms, spellings
from encore.errors import InputError
from encore.files import naming
from encore.text import printable
from encore.text_encoding import LEGACY, utf8_chunks, western


@dataclass(frozen=True)
class Caps:
    """Size limits of a text file, after decompression.

    Args:
        total: bytes.
        lines: lines, blank ones included.
        line: bytes in one line.
    """

    total: int
    lines: int
    line: int


LIST_CAPS = Caps(total=16 << 20, lines=100_000, line=64 << 10)
CATALOG_CAPS = Caps(total=256 << 20, lines=500_000, line=256 << 10)

LINE_END = re.compile(rb"\r\n|\n|\r(?=.)", re.DOTALL)  # a \r at the end of a piece may be half of an end
ZIP = b"PK\3\4"  # a workbook, or an archive
NOT_TEXT = "give a text file: of a workbook or a library, export CSV (UTF-8) or M3U8"


def spot(name: str, line: int | None = None) -> str:
    """A place in a file, for messages: `list.txt, line 3`."""
    return printable(name) if line is None else f"{printable(name)}, line {line}"


def locate(
    raw: str, folders: Sequence[Path], roots: Sequence[Path], where: str, *, exactly: bool = False
) -> Path | None:
    """The real path of the regular file that `raw` names; None where there is none.

    The real path (all symbolic links followed) must be inside one of `roots`. This rule covers `..`, absolute paths and
    links that lead out, whether or not the file exists.

    Args:
        raw: the path as written. Other spellings (`encore.data.path_variants`) are tried where it does not exist.
        folders: searched in turn.
        roots: allowed folders.
        where: the place that names the path, for messages.
        exactly: try only its Unicode forms, no other spellings.

    Raises:
        InputError: the path leads outside, or is not a regular file.
    """
    allowed = list(dict.fromkeys(os.path.realpath(root) for root in roots))
    outside = False

    def may_read(real: str) -> bool:
        return any(_inside(real, root) for root in allowed)

    ways: list[Callable[[str, str], str | None]] = [os.path.join]
    if not exactly:
        ways.append(lambda folder, name: alike(folder, name, may_read))
    for find in ways:
        for name in forms(raw) if exactly else spellings(raw):
            for folder in folders:
                try:
                    path = find(os.fspath(folder), name)
                    real = None if path is None else os.path.realpath(path)
                    if real is None:
                        continue
                    if not may_read(real):
                        outside = True
                    elif os.path.lexists(real):
                        _require_regular(os.stat(real).st_mode, raw, f"{where}: ")
                        return Path(real)
                except (OSError, ValueError):  # too long, a NUL, a loop of links, no permission
                    continue
    if outside:
        other = os.path.dirname(raw) if os.path.isabs(raw) else "FOLDER"
        raise InputError(
            f"{where}: '{printable(raw)}' leads outside {' and '.join(printable(root) for root in allowed)}",
            f"only files inside the list's own folder are read; --root {printable(other)} allows another one",
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
    """Open a regular file for reading; a pipe, device or folder is refused without waiting for it.

    Raises:
        InputError: it is missing, unreadable or not a regular file.
    """
    # O_NONBLOCK: opening a pipe without a writer must not hang; it has no effect on a regular file.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        _require_regular(os.stat(path).st_mode, str(path))  # before opening, which may trigger a device
        handle = os.open(path, flags)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        relative = isinstance(error, FileNotFoundError) and not os.path.isabs(path)
        hint = f"it was searched for in {printable(Path.cwd())}" if relative else ""
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


def path_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; of a folder, over the names and hashes of the files below it."""
    if not path.is_dir():
        return file_sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [f"{file.relative_to(path).as_posix()} {file_sha256(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def read_lines(
    stream: BinaryIO, name: str, caps: Caps, *, compressed: bool = False, notes: list[str] | None = None
) -> Iterator[tuple[int, str]]:
    r"""Stream the lines of a text, numbered from 1, without their ends (`\n`, `\r\n` or `\r`).

    The text is UTF-8, or UTF-16 or UTF-32 with a mark; another line is Windows-1252 where that is unambiguous
    (`text_encoding.western`). Else each byte that is not UTF-8 becomes a surrogate, as in `os.fsdecode`, so that a file
    with such a name is found; captions with surrogates are refused later.

    Args:
        stream: the bytes.
        name: of the file, for messages.
        caps: size limits.
        compressed: whether it is gzip.
        notes: receives a sentence where the text is not UTF-8.

    Raises:
        InputError: it is not text, a broken gzip stream, or larger than `caps` (checked before it is in memory).
    """
    source = cast(BinaryIO, gzip.GzipFile(fileobj=stream, mode="rb")) if compressed else stream
    notes = [] if notes is None else notes
    legacy: list[tuple[int, str]] = []
    macintosh = False  # lines that end in \\r alone: older Macs had another code page

    def chunks() -> Iterator[bytes]:
        nonlocal macintosh
        for chunk in utf8_chunks(source, name, notes):
            macintosh = macintosh or re.search(rb"\r[^\r\n]", chunk) is not None
            yield chunk

    for number, line in enumerate(_byte_lines(chunks(), name, caps), 1):
        if len(line) > caps.line:
            raise InputError(
                f"{spot(name, number)}: the line is longer than {caps.line:,} bytes", "write one track per line"
            )
        if number > caps.lines:
            raise InputError(f"{printable(name)} has more than {caps.lines:,} lines", "split it")
        if b"\0" in line or (number == 1 and line.startswith(ZIP)):
            raise InputError(f"{spot(name, number)}: not text", NOT_TEXT)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            old = None if macintosh else western(line)
            text = line.decode("utf-8", "surrogateescape") if old is None else old
            if old is not None:
                legacy.append((number, old))
        yield number, text.removeprefix("\ufeff")
    if legacy:
        lines = "1 line that is" if len(legacy) == 1 else f"{len(legacy)} lines that are"
        first = f"line {legacy[0][0]}: '{printable(legacy[0][1][:60])}'"
        notes.append(f"{printable(name)}: read {lines} not UTF-8 as {LEGACY} ({first})")


def _byte_lines(chunks: Iterator[bytes], name: str, caps: Caps) -> Iterator[bytes]:
    rest, total, number = b"", 0, 0
    while True:
        try:
            chunk = next(chunks, None)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{spot(name, number + 1)}: can't be read: {error}") from error
        if chunk is None:
            break
        total += len(chunk)
        *whole, rest = LINE_END.split(rest + chunk)
        number += len(whole)
        yield from whole
        if len(rest) > caps.line:
            break
        if total > caps.total:
            raise InputError(f"{printable(name)} holds more than {caps.total:,} bytes of text", "split it")
    if rest:
        yield rest.removesuffix(b"\r")
