"""Readers of list and catalogue formats.

Plain text and M3U: one item per line. CSV and JSON lines: columns, whose names are matched in any case:

    path     file_name, path, file, filename, audio, …   (Hugging Face, audiocraft, DCASE and the like)
    caption  caption, description, text, prompt, … and their plurals, see `captions.captions_in`
             (title, artist and tags where there is none)
    id       id, track_id      isrc      sha256      title      artist      split
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import unquote

from encore.data.captions import Tags, captions_in, column_key, keywords_in, nonempty_text
from encore.data.open_files import spot
from encore.data.path_variants import DRIVE
from encore.errors import InputError
from encore.text import clean_caption, printable
from encore.text_encoding import check_undecoded

PATH_KEYS = (
    "file_name", "path", "file", "filename", "audio", "audio_path", "filepath", "file_path", "audio_file",
    "audio_filepath", "location",
)  # fmt: skip
ID_KEYS = ("id", "track_id")
_NAMES = {"path": PATH_KEYS, "id": ID_KEYS}
KINDS = ("id", "isrc", "sha256", "artist")  # what a line of plain text may name a track by, with a colon after it
DELIMITERS = (",", ";", "\t", "|")

Lines = Iterable[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Record:
    """One item as written, before any look-up. Missing values are empty strings.

    Args:
        line: 1-based line it begins on.
        source: its text.
        path: of the audio file, as written.
        id: the track's id.
        isrc: as written.
        sha256: of the file.
        captions: of the track.
        title: of the track.
        artist: of the track.
        split: in lower case.
        hint: a fallback caption (title and artist, M3U's `#EXTINF`), used only without a side-car file.
        others: kind ("path" or "id") and text of further columns that name a file or an id, as written.
        meta: all other columns; "split" and "genre" as one line of text.
    """

    line: int
    source: str
    path: str = ""
    id: str = ""
    isrc: str = ""
    sha256: str = ""
    captions: tuple[str, ...] = ()
    title: str = ""
    artist: str = ""
    split: str = ""
    hint: str = ""
    others: tuple[tuple[str, str], ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """The first caption; empty without one."""
        return self.captions[0] if self.captions else ""


def text_records(lines: Lines, name: str) -> Iterator[Record]:
    """Plain text: a path or `id:`, `isrc:`, `sha256:`, `artist:`, optionally a TAB and a caption; `#` is a comment.

    A line such as `id:`, without a value, becomes a record without any.
    """
    for number, line in lines:
        if line.strip() and not line.lstrip().startswith("#"):
            yield _item(line, number, name)


def m3u_records(lines: Lines, name: str) -> Iterator[Record]:
    """An M3U playlist; `#EXTINF:123,Artist - Title` is the fallback caption."""
    hint = ""
    for number, line in lines:
        if line.startswith("#EXTINF:"):
            check_undecoded([line], spot(name, number))
            hint = clean_caption(line.partition(",")[2])
        elif line.strip() and not line.startswith("#"):
            yield _item(line, number, name, hint)
            hint = ""


def _item(line: str, number: int, name: str, hint: str = "") -> Record:
    item, _, caption = line.partition("\t")
    item = item.strip(" ")
    if not item:
        raise InputError(f"{spot(name, number)}: a caption without a track before it", "write the path, TAB, caption")
    check_undecoded([caption], spot(name, number))
    captions = (clean_caption(caption),) if caption.strip() else ()
    kind, colon, value = item.partition(":")
    if colon and kind.casefold() in KINDS:
        named: dict[str, Any] = {kind.casefold(): value.strip()}
        return Record(number, line, captions=captions, hint=hint, **named)
    path = local_path(item, spot(name, number))
    if not path:
        raise InputError(f"{spot(name, number)}: '{printable(item)}' names no file")
    return Record(number, line, path=path, captions=captions, hint=hint)


def local_path(item: str, where: str) -> str:
    """A path as written; `file:` addresses become paths.

    Raises:
        InputError: an address on the network.
    """
    scheme, mark, rest = item.partition(":")
    if not mark or not (rest.startswith("//") or scheme.casefold() == "file") or not scheme.isalnum():
        return item
    if scheme.casefold() != "file":
        raise InputError(f"{where}: '{printable(item)}' is an address, not a file", "download it first")
    if rest.startswith("//"):
        rest = "/" + rest[2:].partition("/")[2]
    path = unquote(rest, errors="surrogateescape")
    return path[1:] if DRIVE.match(path[1:]) else path  # file:///C:/Music


def jsonl_records(lines: Lines, name: str) -> Iterator[Record]:
    """JSON lines: one object per line."""
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=partial(_unrepeated, where=spot(name, number)))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{spot(name, number)}: not JSON: {printable(error)}") from error
        if not isinstance(row, dict):
            raise InputError(f"{spot(name, number)}: not a JSON object", 'write {"path": "song.flac", "caption": "…"}')
        yield _row(row, number, line, name)


def _unrepeated(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    """An object of JSON, of which Python would keep only the last of the values under one key."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"{where}: the key '{printable(repeated)}' is there twice", "write two lines for two tracks")
    return row


def csv_records(lines: Lines, name: str) -> Iterator[Record]:
    """CSV with a header; separated by comma, semicolon, TAB or bar, whichever gives known columns."""
    iterator = iter(lines)
    first = next(((number, line) for number, line in iterator if line.strip()), None)
    if first is None:
        return
    number, header = first
    marked = re.fullmatch(r'"?sep=(.)"?', header, re.IGNORECASE)  # Excel's own first line
    if marked:
        number, header = next(((at, line) for at, line in iterator if line.strip()), (number, ""))
    keys, delimiter = _header(header, spot(name, number), (marked[1],) if marked else DELIMITERS)

    def rest() -> Iterator[str]:
        nonlocal number
        for number, line in iterator:  # noqa: B007  (the number is read below, where a row ends)
            yield line + "\n"

    reader = csv.reader(rest(), delimiter=delimiter, strict=True)
    begin = number + 1
    try:
        for cells in reader:
            while len(cells) > len(keys) and not cells[-1].strip():  # Excel pads rows
                cells.pop()
            if len(cells) > len(keys):
                raise InputError(f"{spot(name, begin)}: {len(cells)} cells under {len(keys)} columns", "quote the cell")
            row: dict[str, Any] = dict(zip(keys, cells, strict=False))
            if any(cell.strip() for cell in cells):
                yield _row(row, begin, delimiter.join(cells), name)
            begin = number + 1
    except csv.Error as error:
        raise InputError(f"{spot(name, begin)}: not CSV: {error}", "a quote may be missing") from error


def _header(header: str, where: str, delimiters: Iterable[str]) -> tuple[list[str], str]:
    known = {*PATH_KEYS, *ID_KEYS, "isrc", "sha256"}
    for delimiter in delimiters:
        try:
            keys = [key.strip() for key in next(csv.reader([header], delimiter=delimiter), [])]
        except csv.Error:
            continue
        names = [column_key(key) for key in keys]
        if known.intersection(names):
            repeated = next((name for name in names if name and names.count(name) > 1), None)
            if repeated is not None:
                raise InputError(f"{where}: the header names '{printable(repeated)}' twice", "rename one column")
            return keys, delimiter
    artists = (
        "; all tracks of an artist: a list of plain text with artist:NAME" if "artist" in header.casefold() else ""
    )
    raise InputError(
        f"{where}: the header names no column of files or ids: '{printable(header[:80])}'",
        f"name one of them {', '.join(PATH_KEYS[:5])}, id, isrc or sha256{artists}",
    )


def _row(row: Mapping[str, Any], number: int, source: str, name: str) -> Record:
    folded = {column_key(key): key for key in row}
    where = spot(name, number)

    def take(*names: str) -> str:
        for key in names:
            value = row[folded[key]] if key in folded else None
            if isinstance(value, dict):  # Hugging Face's Audio column: {"path": …, "bytes": …}
                value = value.get("path")
            if key in ID_KEYS and isinstance(value, float) and value.is_integer():  # pandas, of a column with gaps
                value = int(value)
            if isinstance(value, (str, int)) and not isinstance(value, bool) and nonempty_text(value):
                return str(value).strip(" \r\n") if key not in PATH_KEYS else str(value)
        return ""

    for key, other in ((key, folded[column_key(key)]) for key in row):
        if key != other and nonempty_text(row[key]) and nonempty_text(row[other]) and row[key] != row[other]:
            raise InputError(
                f"{where}: '{printable(key)}' and '{printable(other)}' are the same column", "remove one of them"
            )
    path, title, artist = take(*PATH_KEYS), take("title"), take("artist")
    check_undecoded((title, artist), where)
    known = {"split": take("split").casefold(), "genre": _words(row[folded["genre"]]) if "genre" in folded else ""}
    words = keywords_in(row, where)
    names = {kind: [take(key) for key in keys if key in folded] for kind, keys in _NAMES.items()}
    record = Record(
        line=number,
        source=source,
        path=local_path(path, where) if path else "",
        id=take(*ID_KEYS),
        isrc=take("isrc"),
        sha256=take("sha256"),
        captions=captions_in(row, where),
        title=title,
        artist=artist,
        split=known["split"],
        hint=Tags(title=title, artist=artist, genre=words).caption() if title or words else "",
        others=tuple((kind, value) for kind, given in names.items() for value in list(filter(None, given))[1:]),
        meta={
            key: value
            for folded_key, key in folded.items()
            if folded_key not in {*PATH_KEYS, *ID_KEYS, "isrc", "sha256", "caption", "title", "artist", *known}
            and (value := row[key]) is not None
            and nonempty_text(value)
        }
        | {name: value for name, value in known.items() if value},
    )
    if not (record.path or record.id or record.isrc or record.sha256):
        raise InputError(
            f"{where}: names no file and no id",
            f"fill one of {', '.join(PATH_KEYS[:3])}, id, isrc, sha256",
        )
    return record


def _words(value: object) -> str:
    """A text, a number, or a list of them as one line of text."""
    return ", ".join(filter(None, map(nonempty_text, value if isinstance(value, list) else [value])))


Reader = Callable[[Lines, str], Iterator[Record]]

LIST_FORMATS: Mapping[str, Reader] = {
    ".csv": csv_records,
    ".tsv": csv_records,
    ".jsonl": jsonl_records,
    ".ndjson": jsonl_records,
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


def other_format(suffix: str) -> str:
    """Advice for a list in a format that is not read; empty for any other file."""
    return OTHER_FORMATS.get(suffix.casefold(), "")


OTHER_FORMATS: Mapping[str, str] = {
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers", ".parquet", ".arrow", ".feather"), "save it as CSV (UTF-8)"),
    **dict.fromkeys((".pls", ".xspf", ".wpl", ".asx", ".b4s"), "save the playlist as M3U8"),
    ".cue": "a cue sheet cuts a file into tracks, and whole files are forgotten: cut it first",
    ".json": "write one object per line, into a .jsonl file: jq -c '.[]' FILE",
    ".xml": "save the playlist as M3U8",
}
"""Suffixes of other list and catalogue formats, with advice."""
