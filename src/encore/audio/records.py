"""The formats a list or a catalogue comes in, read into one kind of record.

Plain text and M3U: one item a line. CSV and JSON lines: columns, whose names are matched in any case:

    path     file_name, path, file, filename, audio      (Hugging Face, audiocraft, DCASE and the like)
    caption  caption, description, text (title and artist serve where nothing says more)
    id       id, track_id      isrc      sha256      title      artist      split
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from encore.audio.captions import Tags, caption_in
from encore.audio.files import spot
from encore.audio.text import clean_caption, printable
from encore.errors import InputError

PATH_KEYS = ("file_name", "path", "file", "filename", "audio", "audio_path")
ID_KEYS = ("id", "track_id")
DELIMITERS = (",", ";", "\t", "|")

Lines = Iterable[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Record:
    """One item as written: nothing is looked up yet. Empty strings where a column says nothing.

    Args:
        line: 1-based line it begins on. source: its text.
        hint: a caption to fall back on (title and artist, M3U's `#EXTINF`), weaker than a side-car file's.
        meta: the columns that have no field of their own.
    """

    line: int
    source: str
    path: str = ""
    id: str = ""
    isrc: str = ""
    sha256: str = ""
    caption: str = ""
    title: str = ""
    artist: str = ""
    split: str = ""
    hint: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


def text_records(lines: Lines, name: str) -> Iterator[Record]:
    """Plain text: a path, `id:…`, `isrc:…` or `sha256:…`, then perhaps a TAB and a caption. `#` begins a comment."""
    for number, line in lines:
        if line.strip() and not line.lstrip().startswith("#"):
            yield _item(line, number, name)


def m3u_records(lines: Lines, name: str) -> Iterator[Record]:
    """An M3U playlist; `#EXTINF:123,Artist - Title` serves as a caption where nothing better is found."""
    hint = ""
    for number, line in lines:
        if line.startswith("#EXTINF:"):
            hint = clean_caption(line.partition(",")[2])
        elif line.strip() and not line.startswith("#"):
            yield _item(line, number, name, hint)
            hint = ""


def _item(line: str, number: int, name: str, hint: str = "") -> Record:
    item, _, caption = line.partition("\t")
    item = item.strip(" ")
    if not item:
        raise InputError(f"{spot(name, number)}: a caption without a track before it", "write the path, TAB, caption")
    caption = clean_caption(caption)
    kind, colon, value = item.partition(":")
    if colon and kind.casefold() in {"id", "isrc", "sha256"}:
        if not value.strip():
            raise InputError(f"{spot(name, number)}: nothing stands after '{printable(item)}'")
        named: dict[str, Any] = {kind.casefold(): value.strip()}
        return Record(number, line, caption=caption, hint=hint, **named)
    return Record(number, line, path=local_path(item, spot(name, number)), caption=caption, hint=hint)


def local_path(item: str, where: str) -> str:
    """A path as written, `file://` addresses turned into paths.

    Raises:
        InputError: an address on the network.
    """
    scheme, mark, _ = item.partition("://")
    if not mark or not scheme.isalnum():
        return item
    if scheme.casefold() != "file":
        raise InputError(f"{where}: '{printable(item)}' is an address, not a file", "download it first")
    return unquote("/" + item.partition("://")[2].partition("/")[2], errors="surrogateescape")


def jsonl_records(lines: Lines, name: str) -> Iterator[Record]:
    """JSON lines: one object a line."""
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{spot(name, number)}: not JSON: {printable(error)}") from error
        if not isinstance(row, dict):
            raise InputError(f"{spot(name, number)}: not a JSON object", 'write {"path": "song.flac", "caption": "…"}')
        yield _row(row, number, line, name)


def csv_records(lines: Lines, name: str) -> Iterator[Record]:
    """CSV with a header; comma, semicolon, TAB or bar, whichever makes sense of the header."""
    iterator = iter(lines)
    first = next(((number, line) for number, line in iterator if line.strip()), None)
    if first is None:
        return
    number, header = first
    keys, delimiter = _header(header, spot(name, number))

    def rest() -> Iterator[str]:
        nonlocal number
        for number, line in iterator:  # noqa: B007  (the number is read below, where a row ends)
            yield line + "\n"

    reader = csv.reader(rest(), delimiter=delimiter, strict=True)
    begin = number + 1
    try:
        for cells in reader:
            if len(cells) > len(keys):
                raise InputError(f"{spot(name, begin)}: {len(cells)} cells under {len(keys)} columns", "quote the cell")
            row: dict[str, Any] = dict(zip(keys, cells, strict=False))
            if any(cell.strip() for cell in cells):
                yield _row(row, begin, delimiter.join(cells), name)
            begin = number + 1
    except csv.Error as error:
        raise InputError(f"{spot(name, begin)}: not CSV: {error}", "a quote may be missing") from error


def _header(header: str, where: str) -> tuple[list[str], str]:
    known = {*PATH_KEYS, *ID_KEYS, "isrc", "sha256"}
    for delimiter in DELIMITERS:
        try:
            keys = [key.strip() for key in next(csv.reader([header], delimiter=delimiter), [])]
        except csv.Error:
            continue
        if known & {key.casefold() for key in keys}:
            return keys, delimiter
    raise InputError(
        f"{where}: the header names no column of files or ids: '{printable(header[:80])}'",
        f"name one of them {', '.join(PATH_KEYS[:5])}, id, isrc or sha256",
    )


def _row(row: Mapping[str, Any], number: int, source: str, name: str) -> Record:
    folded = {key.strip().casefold(): key for key in row}

    def take(*names: str) -> str:
        for key in names:
            value = row[folded[key]] if key in folded else None
            if isinstance(value, dict):  # Hugging Face's Audio column: {"path": …, "bytes": …}
                value = value.get("path")
            if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value).strip():
                return str(value).strip(" \r\n") if key not in PATH_KEYS else str(value)
        return ""

    path, title, artist = take(*PATH_KEYS), take("title"), take("artist")
    record = Record(
        line=number,
        source=source,
        path=local_path(path, spot(name, number)) if path else "",
        id=take(*ID_KEYS),
        isrc=take("isrc"),
        sha256=take("sha256"),
        caption=caption_in(row),
        title=title,
        artist=artist,
        split=take("split"),
        hint=Tags(title=title, artist=artist).caption() if title else "",
        meta={
            key: value
            for folded_key, key in folded.items()
            if folded_key not in {*PATH_KEYS, *ID_KEYS, "isrc", "sha256", "caption", "title", "artist"}
            and (value := row[key]) is not None
        },
    )
    if not (record.path or record.id or record.isrc or record.sha256):
        raise InputError(
            f"{spot(name, number)}: names no file and no id",
            f"fill one of {', '.join(PATH_KEYS[:3])}, id, isrc, sha256",
        )
    return record


Reader = Callable[[Lines, str], Iterator[Record]]

LIST_FORMATS: Mapping[str, Reader] = {
    ".csv": csv_records,
    ".tsv": csv_records,
    ".jsonl": jsonl_records,
    ".m3u": m3u_records,
    ".m3u8": m3u_records,
}
"""Readers by the list's suffix; any other suffix is plain text."""

CATALOG_FORMATS: Mapping[str, Reader] = {
    ".csv": csv_records,
    ".tsv": csv_records,
    ".jsonl": jsonl_records,
    ".ndjson": jsonl_records,
}
