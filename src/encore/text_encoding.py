"""Text in the encoding that it has: UTF-8, UTF-16 or UTF-32, and Windows-1252 where nothing else can be meant.

Playlists (`.m3u`), Excel's CSV and side-car files are written in the code page of the machine they come from. Which one
that was is nowhere written, so only the commonest is taken, only where what comes out looks like a Western European
language, and never silently: whoever reads a text gets its encoding with it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from encore.errors import InputError
from encore.text import printable

CHUNK = 1 << 16
"""Bytes read at a time."""

LEGACY = "Windows-1252"

_MARK = b"\xef\xbb\xbf"  # the byte order mark, in UTF-8
_LETTERS = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþ"
_SIGNS = "“”–—…•€™«»¡¿°ºª§©®£\N{NO-BREAK SPACE}"
_WESTERN = re.compile(rf"(?:[\0-\x7f{_LETTERS}{_SIGNS}‘’´]|[Œœ](?=[uU]))*")
# Letters outside of ASCII come alone or in pairs there ("créée"); three in a row are another alphabet's. A sign inside
# a word is a letter of another code page (Mac OS, DOS).
_ANOTHER = re.compile(rf"[{_LETTERS}]{{3}}|[A-Za-z{_LETTERS}][{_SIGNS}][A-Za-z{_LETTERS}]")


def western(data: bytes) -> str | None:
    """Windows-1252 text; None where that would be a guess: other alphabets, mixed encodings, binary."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    mixed = re.search(rb"[\xc3-\xf4][\x80-\xbf]", data)  # most of all, a character that is UTF-8
    return None if mixed or _ANOTHER.search(text) or not _WESTERN.fullmatch(text) else text


def decoded(data: bytes, name: str) -> tuple[str, str]:
    """A whole text, and how it is encoded: "UTF-8", "UTF-16", "UTF-32" or `LEGACY`.

    Args:
        name: the file, for messages.

    Raises:
        InputError: it is none of them.
    """
    encoding = _unicode(data)
    try:
        return data.decode(encoding), _label(encoding)
    except UnicodeDecodeError as error:
        text = western(data) if encoding == "utf-8" else None
        if text is None:
            raise InputError(f"{printable(name)} is not {_label(encoding)} text: {error.reason}", ADVICE) from error
        return text, LEGACY


ADVICE = "save it as UTF-8; where it is of an old code page: iconv -f CODEPAGE -t UTF-8"


def utf8_chunks(stream: BinaryIO, name: str, notes: list[str]) -> Iterator[bytes]:
    """A file in pieces, those of UTF-16 and UTF-32 as UTF-8 without a mark; what is neither passes as it is.

    Args:
        name: the file, for messages.
        notes: gets a sentence where the text is not UTF-8.

    Raises:
        InputError: a text that is not what its first bytes announce.
    """
    chunk = stream.read(CHUNK)
    encoding = _unicode(chunk)
    if encoding.startswith("utf-8"):
        chunk = chunk.removeprefix(_MARK)
        while chunk:
            yield chunk
            chunk = stream.read(CHUNK)
        return
    notes.append(f"{printable(name)} was read as {_label(encoding)} text")
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while chunk:
            yield decoder.decode(chunk).encode().removeprefix(_MARK)
            chunk = stream.read(CHUNK)
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise InputError(f"{printable(name)} is not text, nor {_label(encoding)}, as its first bytes say") from error


def check_undecoded(texts: Iterable[object], where: str) -> None:
    """Refuse text that has bytes of an unknown encoding (surrogates, see `files.read_lines`).

    Args:
        texts: what is no text passes.
        where: how messages call the place that has them.

    Raises:
        InputError: a text has such bytes.
    """
    for text in texts:
        if isinstance(text, str) and re.search("[\udc80-\udcff]", text):
            raise InputError(f"{where}: '{printable(text[:60])}' is neither UTF-8 nor {LEGACY} text", ADVICE)


def _unicode(data: bytes) -> str:
    """By a mark, or where the zero bytes of its first characters are (RFC 4627)."""
    return json.detect_encoding(data)


def _label(encoding: str) -> str:
    return encoding[: 5 if encoding.startswith("utf-8") else 6].upper()
