"""A folder of audio files as tracks, for those who have no list."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from encore.data.captions import nonempty_text, read_tags, resolve_captions
from encore.data.catalog import Catalog
from encore.data.file_info import FileCache
from encore.data.open_files import locate
from encore.data.tracks import Track, distinct
from encore.errors import InputError
from encore.text import printable

AUDIO = frozenset({
    ".aac", ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".m4a", ".mka", ".mp2", ".mp3", ".mp4", ".oga", ".ogg",
    ".opus", ".w64", ".wav", ".wave", ".webm", ".wma", ".wv",
})  # fmt: skip
"""Suffixes of files that are taken for audio."""


def read_folder(
    folder: Path,
    *,
    catalog: Catalog | None = None,
    roots: Sequence[Path] = (),
    errors: list[InputError],
    notes: list[str],
) -> list[Track]:
    """The audio files in a folder and its subfolders, by path, or one of them; a file counts once.

    Captions come from the catalogue, else from a side-car file, tags, or the file's name.

    Args:
        folder: the folder, or an audio file.
        catalog: supplies captions and metadata of files that it lists.
        roots: further folders that links in the folder may lead into.
        errors: receives the errors of single files, which are left out.
        notes: receives sentences for the user.

    Raises:
        InputError: the folder has no audio file.
    """
    names = [folder.name] if folder.is_file() else []
    folder = folder.parent if names else folder
    names = names or sorted(
        os.path.relpath(os.path.join(place, name), folder)
        for place, _, files in os.walk(folder)
        for name in files
        if not name.startswith(".")
    )
    audio = [name for name in names if os.path.splitext(name)[1].casefold() in AUDIO]
    if not audio:
        raise InputError(
            f"the folder '{printable(folder)}' holds no audio file",
            f"files are taken for audio by their suffix: {', '.join(sorted(AUDIO))}",
        )
    tracks: dict[str, Track] = {}  # by hash
    by_name = 0
    for name in audio:
        try:
            path = None
            if os.path.exists(folder / name):  # not a broken link
                path = locate(name, [folder], [folder, *roots], printable(folder), exactly=True)
            if path is None:
                raise InputError(f"{printable(folder)}: '{printable(name)}' can't be read", "is it a broken link?")
            digest = FileCache().sha256(path)
            if digest in tracks:
                notes.append(f"{printable(name)} is the same file as {tracks[digest].id}: used once")
                continue
            entries = catalog.records_of(path, digest) if catalog is not None else ()
            if entries and catalog is not None:
                tracks[digest] = catalog.track(entries[0], path=path)
                continue
            hint = "" if read_tags(path).caption() else _words(name)
            found = resolve_captions(path, (), "", hint, [folder, *roots], printable(folder))
            by_name += found.source.startswith("title")
            tags = read_tags(path)
            tracks[digest] = Track(
                id=printable(Path(name).as_posix()), path=path, caption=found.texts[0], sha256=digest,
                title=tags.title or None, artist=tags.artist or None, isrc=tags.isrc or None,
                more_captions=found.texts[1:], caption_source=found.source.replace("title", "file name"),
                place=printable(name),
            )  # fmt: skip
        except InputError as error:
            errors.append(error)
    if by_name:
        notes.append(
            f"{by_name} of {len(audio)} files have no caption beside them, in a catalogue or in their tags: their "
            "names are used, which weakens every test that prompts the model with words"
        )
    return list(distinct(tracks.values()))


def _words(name: str) -> str:
    """A file's name as words: `03 - ode_to_joy.flac` is `ode to joy`."""
    words = re.sub(r"[\s_]+", " ", Path(name).stem)
    words = re.sub(r"^[\d\s.\-]+(?=\D)", "", words).strip() or words
    return nonempty_text(words) or "music"  # `untitled` and the like say nothing
