"""Decode text: UTF-8, UTF-16 or UTF-32, and Windows-1252 where that is unambiguous.

Playlists (`.m3u`), Excel's CSV and side-car files are written in the code page of their machine, which they don't name.
So only the most common one is tried, only where the result looks like a Western European language, and the encoding is
always reported.
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
"""Bytes per read."""

LEGACY = "Windows-1252"

_MARK = b"\xef\xbb\xbf"  # the byte order mark, in UTF-8
_LETTERS = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþ"
_SIGNS = "“”–—…•€™«»¡¿°ºª§©®£\N{NO-BREAK SPACE}"
_WESTERN = re.compile(rf"(?:[\0-\x7f{_LETTERS}{_SIGNS}‘’´]|[Œœ](?=[uU]))*")
# In these languages, letters outside of ASCII occur alone or in pairs ("créée"); three in a row are from another
# alphabet. A sign inside a word is a letter of another code page (Mac OS, DOS).
_ANOTHER = re.compile(rf"[{_LETTERS}]{{3}}|[A-Za-z{_LETTERS}][{_SIGNS}][A-Za-z{_LETTERS}]")


def western(data: bytes) -> str | None:
    """Decode Windows-1252; None where that is uncertain: other alphabets, mixed encodings, binary data."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    mixed = re.search(rb"[\xc3-\xf4][\x80-\xbf]", data)  # probably a UTF-8 character
    return None if mixed or _ANOTHER.search(text) or not _WESTERN.fullmatch(text) else text


def decoded(data: bytes, name: str) -> tuple[str, str]:
    """Decode a text; also returns its encoding: "UTF-8", "UTF-16", "UTF-32" or `LEGACY`.

    Args:
        data: the bytes.
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
    """Read a file in pieces; UTF-16 and UTF-32 are converted to UTF-8 without a mark, other bytes are unchanged.

    Args:
        stream: the file.
        name: the file's name, for messages.
        notes: receives a sentence where the text is not UTF-8.

    Raises:
        InputError: the text is not in the encoding that its first bytes declare.
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
    """Refuse text that has bytes of an unknown encoding (surrogates, see `data.open_files.read_lines`).

    Args:
        texts: values; those that are not text are ignored.
        where: their place, for messages.

    Raises:
        InputError: a text has such bytes.
    """
    for text in texts:
        if isinstance(text, str) and re.search("[\udc80-\udcff]", text):
            raise InputError(f"{where}: '{printable(text[:60])}' is neither UTF-8 nor {LEGACY} text", ADVICE)


def _unicode(data: bytes) -> str:
    """The encoding by a mark, or by the zero bytes in the first characters (RFC 4627)."""
    return json.detect_encoding(data)


def _label(encoding: str) -> str:
    return encoding[: 5 if encoding.startswith("utf-8") else 6].upper()
