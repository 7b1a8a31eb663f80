"""The caption of an audio file that nobody captioned in the list: a side-car file beside it, or its tags."""

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
"""Columns of one caption, in the order in which they are asked; their plurals, and `caption_1`, have several."""

TAG_KEYS = ("tags", "keywords", "aspect_list")

EMPTY = frozenset(["nan", "-nan", "none", "null", "nil", "n/a", "na", "<na>", "#n/a", "#na", "nat", "undefined"])
"""What pandas, spreadsheets and JavaScript write where nothing is, in lower case."""

MAX_SIDECAR = 1 << 20
"""Bytes of a side-car file."""

MAX_LINES = 3
"""Lines of a side-car text that is a caption; more are lyrics or notes."""


@dataclass(frozen=True)
class Tags:
    """What a file says about itself; empty strings where it says nothing."""

    title: str = ""
    artist: str = ""
    genre: str = ""
    comment: str = ""
    isrc: str = ""

    def caption(self) -> str:
        """`title, by artist, genre. comment`, of what there is."""
        artist = f"by {self.artist}" if self.artist else ""
        head = ", ".join(part for part in (self.title, artist, self.genre) if part)
        return clean_caption(". ".join(part for part in (head, self.comment) if part))


@dataclass(frozen=True)
class Captions:
    """The captions of a track.

    Args:
        texts: one line each, all different; the first is what the track is asked for by.
        source: where they come from: "list", "catalogue", "side-car", "title" or "tags"; in brackets, how they were
            read. Empty where there are none.
        tags: the file's, where they had to be read.
    """

    texts: tuple[str, ...] = ()
    source: str = ""
    tags: Tags = Tags()


def said(text: object) -> str:
    """One line of text; empty for what stands for nothing (`EMPTY`)."""
    line = clean_caption(str(text))
    return "" if line.casefold() in EMPTY else line


def distinct(texts: Iterable[str]) -> tuple[str, ...]:
    """Texts that say something, each once, in order."""
    return tuple(dict.fromkeys(line for text in texts if (line := said(text))))


def captions_in(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The captions among a record's columns, by `CAPTION_KEYS`, whatever their case.

    A list of words in a column of one caption is joined by commas; a column whose name is a plural has one caption an
    item.

    Args:
        record: columns by name.
        where: how messages call it.

    Raises:
        InputError: what stands there is no text (an object, true or false).
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
    """The words of a column of tags (`TAG_KEYS`), with commas between."""
    columns = {column_key(str(key)): value for key, value in record.items()}
    return next((", ".join(found) for key in TAG_KEYS if (found := _items(columns.get(key), where))), "")


def column_key(name: str) -> str:
    """A column's name in one spelling: `File Name` is `file_name`."""
    return re.sub(r"[\s\-]+", "_", name.strip().casefold())


def _items(value: Any, where: str) -> list[str]:
    """The texts of a value: itself, or the items of a list, also of one that CSV wrote as text."""
    if isinstance(value, str) and _LIST.fullmatch(value.strip()):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(value.strip())
    if isinstance(value, (bool, Mapping)):
        raise InputError(f"{where} holds neither text nor a list of texts", "write the caption as text")
    items = value if isinstance(value, (list, tuple)) else [value]
    check_undecoded(items, where)
    if any(isinstance(item, (bool, Mapping, list, tuple)) for item in items):
        raise InputError(f"{where} holds neither text nor a list of texts", "write the caption as text")
    return [line for item in items if item is not None and (line := said(item))]


# A list as Python or JSON writes it.
_LIST = re.compile(r"\[\s*['\"].*['\"]\s*,?\s*\]", re.DOTALL)


def settle(path: Path, given: Sequence[str], source: str, hint: str, roots: Sequence[Path], where: str) -> Captions:
    """The captions to use: those given, else a side-car file's, else `hint`, else what the tags say.

    Args:
        path: the audio file.
        given: captions from `source`.
        roots: folders that a side-car file may lie in.
        hint: a caption made of title and artist.
        where: how messages call the place that names the track.

    Raises:
        InputError: none of them has one, or a side-car file can't be read.
    """
    if texts := distinct(given):
        return Captions(texts, source)
    beside = sidecar_captions(path, roots)
    if beside.texts:
        return beside
    passed = beside.source and f" ({beside.source})"
    if said(hint):
        return Captions((said(hint),), f"title{passed}")
    tags = read_tags(path)
    if not tags.caption():
        raise InputError(
            f"{where}: '{printable(path.name)}' has no caption, and a text-to-music model is asked by caption"
            + (f"; {beside.source}" if beside.source else ""),
            f"write it after a TAB, into a catalogue, or into {printable(path.stem)}.txt beside the file",
        )
    return Captions((tags.caption(),), f"tags{passed}", tags)


def sidecar_captions(audio: Path, roots: Sequence[Path]) -> Captions:
    """The captions in `song.txt` or `song.json` beside `song.flac`; none where neither is there or says anything.

    A text of many lines is no caption: it is passed over, and `source` says so.

    Raises:
        InputError: a side-car that leads out of `roots`, is too large, isn't JSON, or is of another encoding.
    """
    passed = ""
    for suffix in (".txt", ".json"):
        name = os.path.splitext(audio.name)[0] + suffix
        found = locate(name, [audio.parent], roots, printable(audio), exactly=True)
        if found is None:
            continue
        with open_regular(found) as stream:
            data = stream.read(MAX_SIDECAR + 1)
        if len(data) > MAX_SIDECAR:
            raise InputError(f"{printable(found)}: a caption file of more than {MAX_SIDECAR:,} bytes")
        text, encoding = decoded(data, str(found))
        if suffix == ".txt" and len([line for line in text.splitlines() if line.strip()]) > MAX_LINES:
            passed = "lyrics in the side-car file passed over"
            continue
        if texts := _parse(text, found):
            return Captions(texts, "side-car" if encoding == "UTF-8" else f"side-car (read as {encoding})")
    return Captions(source=passed)


def _parse(text: str, path: Path) -> tuple[str, ...]:
    if path.suffix.casefold() != ".json":
        return distinct([text])
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{printable(path)}: not JSON: {printable(error)}", "fix the file, or take it away") from error
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
        except Exception:  # a parser of hostile bytes: whatever it trips over, there is no tag to be had
            return Tags()
    isrc = tag.other.get("isrc") or [""]
    return Tags(
        title=said(tag.title or ""),
        artist=said(tag.artist or ""),
        genre=said(tag.genre or ""),
        comment=said(tag.comment or ""),
        isrc=clean_caption(str(isrc[0])),
    )
