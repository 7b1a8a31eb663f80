"""Find the entry points of a group, as `importlib.metadata` does, in a tenth of the time.

`encore --help` lists plugins, and importing `importlib.metadata` (with the email package) takes longer than the rest
of that command. Directories are read here; zip files are left to `importlib.metadata`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple


class EntryPoint(NamedTuple):
    """One line of an entry-point group, and its distribution.

    Args:
        name: left of the `=`.
        value: right of the `=`, "package.module" or "package.module:attribute".
        distribution: name of the installed distribution.
        version: of the distribution.
    """

    name: str
    value: str
    distribution: str
    version: str

    @property
    def module(self) -> str:
        return self.value.partition(":")[0].strip()

    @property
    def attribute(self) -> str:
        return self.value.partition(":")[2].partition("[")[0].strip()

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


def entry_points(group: str, path: Iterable[str] | None = None) -> list[EntryPoint]:
    """The entry points of `group` on `path` (default: `sys.path`); the first distribution of a name hides the later."""
    points: list[EntryPoint] = []
    seen: set[str] = set()
    for folder in dict.fromkeys(sys.path if path is None else path):
        for name, version, text in _distributions(folder or os.curdir, group):
            canonical = re.sub(r"[-_.]+", "-", name).lower()
            if canonical not in seen:
                seen.add(canonical)
                points += [EntryPoint(key, value, name, version) for key, value in _section(text, group)]
    return points


def _distributions(folder: str, group: str) -> Iterator[tuple[str, str, str]]:
    """(name, version, entry_points.txt) of the distributions in a folder that have the group."""
    try:
        with os.scandir(folder) as listing:
            names = sorted(item.name for item in listing if item.name.endswith((".dist-info", ".egg-info")))
    except NotADirectoryError:
        yield from _zipped(folder, group)
        return
    except OSError:
        return  # missing, or not readable: Python's import skips it as well
    for name in names:
        text = _read(folder, name, "entry_points.txt")
        if f"[{group}]" in text:
            fields = _headers(_read(folder, name, "METADATA") or _read(folder, name, "PKG-INFO"))
            yield fields.get("name", Path(name).stem), fields.get("version", "unknown"), text


def _zipped(path: str, group: str) -> Iterator[tuple[str, str, str]]:
    import importlib.metadata

    for distribution in importlib.metadata.distributions(path=[path]):
        text = distribution.read_text("entry_points.txt") or ""
        if f"[{group}]" in text:
            yield distribution.metadata["Name"], distribution.version, text


def _read(*parts: str) -> str:
    try:
        with open(os.path.join(*parts), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _headers(metadata: str) -> dict[str, str]:
    """The headers of METADATA, with lower-case keys; the first of each name counts."""
    fields: dict[str, str] = {}
    for line in metadata.partition("\n\n")[0].splitlines():
        key, colon, value = line.partition(":")
        if colon and not line.startswith((" ", "\t")):
            fields.setdefault(key.lower(), value.strip())
    return fields


def _section(text: str, group: str) -> Iterator[tuple[str, str]]:
    current = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            current = line.strip("[]").strip()
        elif current == group and "=" in line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            yield key.strip(), value.strip()
