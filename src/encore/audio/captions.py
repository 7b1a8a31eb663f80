"""The caption of an audio file that nobody captioned in the list: a side-car file beside it, or its tags."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encore.audio.files import locate, open_regular
from encore.audio.text import clean_caption, printable
from encore.errors import InputError

CAPTION_KEYS = ("caption", "description", "text")
MAX_SIDECAR = 1 << 20
"""Bytes of a side-car file."""


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


def caption_in(record: Mapping[str, Any]) -> str:
    """The caption among a record's keys, in any case: caption, description, text. Empty where there is none."""
    folded = {str(key).strip().casefold(): value for key, value in record.items()}
    for key in CAPTION_KEYS:
        value = folded.get(key)
        if isinstance(value, str) and clean_caption(value):
            return clean_caption(value)
    return ""


def sidecar_caption(audio: Path, roots: Sequence[Path]) -> str:
    """The caption in `song.txt` or `song.json` beside `song.flac`; empty where neither is there or says anything.

    Raises:
        InputError: a side-car that leads out of `roots`, is too large, or isn't JSON.
    """
    for suffix in (".txt", ".json"):
        name = os.path.splitext(audio.name)[0] + suffix
        found = locate(name, [audio.parent], roots, printable(audio))
        if found is None:
            continue
        with open_regular(found) as stream:
            text = stream.read(MAX_SIDECAR + 1)
        if len(text) > MAX_SIDECAR:
            raise InputError(f"{printable(found)}: a caption file of more than {MAX_SIDECAR:,} bytes")
        caption = _parse(text.decode("utf-8-sig", "replace"), found)
        if caption:
            return caption
    return ""


def _parse(text: str, path: Path) -> str:
    if path.suffix.casefold() != ".json":
        return clean_caption(text)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{printable(path)}: not JSON: {printable(error)}", "fix the file, or take it away") from error
    if isinstance(record, dict):
        return caption_in(record) or caption_in({"text": record.get("title")})
    return clean_caption(record) if isinstance(record, str) else ""


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
        title=clean_caption(tag.title or ""),
        artist=clean_caption(tag.artist or ""),
        genre=clean_caption(tag.genre or ""),
        comment=clean_caption(tag.comment or ""),
        isrc=clean_caption(str(isrc[0])),
    )
