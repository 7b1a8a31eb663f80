"""Other spellings of a path, for lines of a list whose file does not exist as written.

Playlists come from other machines: with backslashes, `%20` for spaces, quotes around the path, accents composed or not
(NFC, NFD, or a folder in one and its file in the other), another case, a name in the code page of an old disk.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from encore.text import printable

DRIVE = re.compile(r"^[A-Za-z]:[\\/]|^\\\\")


def forms(raw: str) -> Iterator[str]:
    """`raw` unchanged, with composed accents, and with decomposed accents."""
    yield from dict.fromkeys((raw, unicodedata.normalize("NFC", raw), unicodedata.normalize("NFD", raw)))


def spellings(raw: str) -> Iterator[str]:
    """`raw`, and paths that players or other systems write in this way."""
    seen = {""}
    plain = raw.strip()
    for quote in ('"', "'"):
        plain = plain[1:-1] if len(plain) > 1 and plain[0] == plain[-1] == quote else plain
    decoded = unquote(plain)
    ways = [raw, plain, decoded, os.path.expanduser(plain)]
    if not DRIVE.match(plain):
        ways += [plain.replace("\\", "/"), decoded.replace("\\", "/")]
    for way in ways:
        for name in (way, _as_bytes(way)):
            if name not in seen:
                seen.add(name)
                yield name


def _as_bytes(name: str) -> str:
    """A name stored in Windows-1252, as a system with UTF-8 names reports it."""
    try:
        return os.fsdecode(name.encode("cp1252"))
    except UnicodeEncodeError:
        return name


def alike(folder: str, name: str, may_read: Callable[[str], bool]) -> str | None:
    """The only path below `folder` that equals `name` up to case and Unicode form; None where none or several do.

    Args:
        folder: base of a relative `name`.
        name: with the separators of this system.
        may_read: whether a folder (its real path) may be listed.
    """
    here = os.sep if os.path.isabs(name) else folder
    for part in Path(name).parts:
        if part in (os.sep, os.pardir) or os.path.lexists(os.path.join(here, part)):
            here = os.path.join(here, part)
            continue
        real = os.path.realpath(here)
        if not may_read(real):
            return None
        names = _names(real, os.stat(real).st_mtime_ns).get(_folded(part), ())
        form = unicodedata.normalize("NFC", part)
        matches = [name for name in names if unicodedata.normalize("NFC", name) == form] or names
        if len(matches) != 1:
            return None
        here = os.path.join(here, matches[0])
    return here


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@lru_cache(maxsize=64)
def _names(folder: str, _changed: int) -> dict[str, list[str]]:
    """The names in a folder as of its last change, by their normal form without case."""
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        names.setdefault(_folded(name), []).append(name)
    return names


def why_missing(raw: str, folder: Path, roots: Sequence[Path]) -> str:
    """A hint for the path of a missing file; may be empty.

    Args:
        raw: the path as written.
        folder: of the list or catalogue that names it.
        roots: the folders that were searched.
    """
    if DRIVE.match(raw.strip("\"' ")):
        return "it is a path of a Windows machine: write it relative to the list, or to a --root FOLDER"
    if raw and not os.path.isabs(raw) and os.pardir not in Path(raw).parts:
        # audiocraft's manifests are relative to the folder that training was started in, not to their own.
        for above in (Path.cwd(), *folder.parents):
            if above not in roots and above != Path(above.anchor) and os.path.lexists(above / raw):
                inside = os.path.relpath(above) if above.is_relative_to(Path.cwd()) else str(above)
                return f"it is there from '{printable(above)}': give --root {printable(inside)}"
    return ""
