"""One path, many spellings: what a line of a list may mean where no file is named exactly as it is written.

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
    """`raw` as it is, with accents composed, and with accents decomposed."""
    yield from dict.fromkeys((raw, unicodedata.normalize("NFC", raw), unicodedata.normalize("NFD", raw)))


def spellings(raw: str) -> Iterator[str]:
    """`raw`, and what it may have been before a player or another system wrote it down."""
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
    """A name that was written in Windows-1252 on a disk, as that disk gives it back where names are UTF-8."""
    try:
        return os.fsdecode(name.encode("cp1252"))
    except UnicodeEncodeError:
        return name


def alike(folder: str, name: str, may_look: Callable[[str], bool]) -> str | None:
    """The path below `folder` that `name` means whatever its case and Unicode form; None where none or several do.

    Args:
        folder: where a relative `name` begins.
        name: with the separators of this system.
        may_look: whether the names in a folder (its real path) may be read.
    """
    here = os.sep if os.path.isabs(name) else folder
    for part in Path(name).parts:
        if part in (os.sep, os.pardir) or os.path.lexists(os.path.join(here, part)):
            here = os.path.join(here, part)
            continue
        real = os.path.realpath(here)
        if not may_look(real):
            return None
        found = _names(real, os.stat(real).st_mtime_ns).get(_folded(part), ())
        form = unicodedata.normalize("NFC", part)
        same = [one for one in found if unicodedata.normalize("NFC", one) == form] or found
        if len(same) != 1:
            return None
        here = os.path.join(here, same[0])
    return here


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@lru_cache(maxsize=64)
def _names(folder: str, _changed: int) -> dict[str, list[str]]:
    """The names in a folder as of its last change, by what is left of them without case and Unicode form."""
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        names.setdefault(_folded(name), []).append(name)
    return names


def why_missing(raw: str, folder: Path, roots: Sequence[Path]) -> str:
    """A hint for a path that leads to no file; empty where its spelling gives none.

    Args:
        folder: of the list or catalogue that names it.
        roots: the folders it was looked for in.
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
