"""Captions of audio files without one in the list: from a side-car file, or from tags."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encore.data.open_files import locate, open_regular
from encore.errors import InputError
from encore.text import clean_caption, printable
from encore.text_encoding import check_undecoded, decoded

CAPTION_KEYS = ("caption", "description", "text", "prompt", "sentence")
"""Columns of one caption, in order of preference; their plurals, and `caption_1`, hold several."""

TAG_KEYS = ("tags", "keywords", "aspect_list")

EMPTY = frozenset(["nan", "-nan", "none", "null", "nil", "n/a", "na", "<na>", "#n/a", "#na", "nat", "undefined"])
"""Placeholders that pandas, spreadsheets and JavaScript write for missing values, in lower case."""

MAX_SIDECAR = 1 << 20
"""Largest side-car file, bytes."""

MAX_LINES = 3
"""A side-car text of more lines is lyrics or notes, not a caption."""


@dataclass(frozen=True)
class Tags:
    """Metadata of a file; empty strings where there is none."""

    title: str = ""
    artist: str = ""
    genre: str = ""
    comment: str = ""
    isrc: str = ""

    def caption(self) -> str:
        """`title, by artist, genre. comment`, without empty parts."""
        artist = f"by {self.artist}" if self.artist else ""
        head = ", ".join(part for part in (self.title, artist, self.genre) if part)
        return clean_caption(". ".join(part for part in (head, self.comment) if part))


@dataclass(frozen=True)
class Captions:
    """The captions of a track.

    Args:
        texts: one line each, all different; the first is the track's main caption.
        source: their origin: "list", "catalogue", "side-car", "title" or "tags"; in brackets, how they were read. Empty
            where there are none.
        tags: of the file, where they were read.
    """

    texts: tuple[str, ...] = ()
    source: str = ""
    tags: Tags = Tags()


def nonempty_text(text: object) -> str:
    """One line of text; empty for a placeholder (`EMPTY`)."""
    line = clean_caption(str(text))
    return "" if line.casefold() in EMPTY else line


def distinct(texts: Iterable[str]) -> tuple[str, ...]:
    """Non-empty texts, each once, in order."""
    return tuple(dict.fromkeys(line for text in texts if (line := nonempty_text(text))))


def captions_in(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The captions among a record's columns, by `CAPTION_KEYS` in any case.

    A list of words in a column of one caption is joined by commas; a column with a plural name has one caption per
    item.

    Args:
        record: columns by name.
        where: the record's place, for messages.

    Raises:
        InputError: a value is not text (an object, true or false).
    """
    columns = {column_key(str(key)): value for key, value in record.items()}
    for key in CAPTION_KEYS:
        place = f"{where}: column '{key}'"
        numbered = [value for name, value in columns.items() if re.fullmatch(rf"{key}_?\d+", name)]
        several = [*_items(columns.get(f"{key}s"), place), *(", ".join(_items(value, place)) for value in numbered)]
        if texts := distinct([", ".join(_items(columns.get(key), place))]) or distinct(several):
            return texts
    return ()


def keywords_in(record: Mapping[str, Any], where: str) -> str:
    """The words of a column of tags (`TAG_KEYS`), separated by commas."""
    columns = {column_key(str(key)): value for key, value in record.items()}
    return next((", ".join(words) for key in TAG_KEYS if (words := _items(columns.get(key), where))), "")


def column_key(name: str) -> str:
    """A column's normalised name: `File Name` is `file_name`."""
    return re.sub(r"[\s\-]+", "_", name.strip().casefold())


def _items(value: Any, where: str) -> list[str]:
    """The texts of a value: itself, or the items of a list, also of a list written as text."""
    if isinstance(value, str) and _LIST.fullmatch(value.strip()):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(value.strip())
    if isinstance(value, (bool, Mapping)):
        raise InputError(f"{where} holds neither text nor a list of texts", "write the caption as text")
    items = value if isinstance(value, (list, tuple)) else [value]
    check_undecoded(items, where)
    if any(isinstance(item, (bool, Mapping, list, tuple)) for item in items):
        raise InputError(f"{where} holds neither text nor a list of texts", "write the caption as text")
    return [line for item in items if item is not None and (line := nonempty_text(item))]


# A list as Python or JSON writes it.
_LIST = re.compile(r"\[\s*['\"].*['\"]\s*,?\s*\]", re.DOTALL)


def resolve_captions(
    path: Path, given: Sequence[str], source: str, hint: str, roots: Sequence[Path], where: str
) -> Captions:
    """The captions to use: those given, else those of a side-car file, else `hint`, else from tags.

    Args:
        path: the audio file.
        given: captions from `source`.
        source: origin of `given`.
        hint: a caption made of title and artist.
        roots: folders that a side-car file may be in.
        where: the place that names the track, for messages.

    Raises:
        InputError: there is no caption, or a side-car file can't be read.
    """
    if texts := distinct(given):
        return Captions(texts, source)
    beside = sidecar_captions(path, roots)
    if beside.texts:
        return beside
    skipped = beside.source and f" ({beside.source})"
    if title := nonempty_text(hint):
        return Captions((title,), f"title{skipped}")
    tags = read_tags(path)
    if not tags.caption():
        raise InputError(
            f"{where}: '{printable(path.name)}' has no caption, and a text-to-music model needs one"
            + (f"; {beside.source}" if beside.source else ""),
            f"write it after a TAB, into a catalogue, or into {printable(path.stem)}.txt beside the file",
        )
    return Captions((tags.caption(),), f"tags{skipped}", tags)


def sidecar_captions(audio: Path, roots: Sequence[Path]) -> Captions:
    """The captions in `song.txt` or `song.json` beside `song.flac`; none where there is no such text.

    A text of many lines is no caption: it is skipped, and `source` says so.

    Raises:
        InputError: a side-car file is outside of `roots`, too large, not JSON, or of another encoding.
    """
    skipped = ""
    for suffix in (".txt", ".json"):
        name = os.path.splitext(audio.name)[0] + suffix
        path = locate(name, [audio.parent], roots, printable(audio), exactly=True)
        if path is None:
            continue
        with open_regular(path) as stream:
            data = stream.read(MAX_SIDECAR + 1)
        if len(data) > MAX_SIDECAR:
            raise InputError(f"{printable(path)}: a caption file of more than {MAX_SIDECAR:,} bytes")
        text, encoding = decoded(data, str(path))
        if suffix == ".txt" and len([line for line in text.splitlines() if line.strip()]) > MAX_LINES:
            skipped = "lyrics in the side-car file skipped"
            continue
        if texts := _parse(text, path):
            return Captions(texts, "side-car" if encoding == "UTF-8" else f"side-car (read as {encoding})")
    return Captions(source=skipped)


def _parse(text: str, path: Path) -> tuple[str, ...]:
    if path.suffix.casefold() != ".json":
        return distinct([text])
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{printable(path)}: not JSON: {printable(error)}", "fix or remove the file") from error
    if isinstance(record, dict):
        return captions_in(record, printable(path)) or distinct([str(record.get("title") or "")])
    return distinct([record]) if isinstance(record, str) else ()


def read_tags(audio: Path) -> Tags:
    """Title, artist, genre, comment and ISRC from a file's tags; empty where it has none or they can't be read.

    Raises:
        InputError: the file can't be opened.
    """
    try:
        from tinytag import TinyTag
    except ImportError:
        return Tags()
    with open_regular(audio) as stream:
        try:
            tag = TinyTag.get(filename=audio.name, file_obj=stream, duration=False)
        except Exception:  # the parser may raise anything on untrusted bytes: treat the file as one without tags
            return Tags()
    isrc = tag.other.get("isrc") or [""]
    return Tags(
        title=nonempty_text(tag.title or ""),
        artist=nonempty_text(tag.artist or ""),
        genre=nonempty_text(tag.genre or ""),
        comment=nonempty_text(tag.comment or ""),
        isrc=clean_caption(str(isrc[0])),
    )
