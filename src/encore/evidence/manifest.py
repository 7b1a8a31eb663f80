"""The manifest: what is in a bundle, and what the model's files are, each by its SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encore import __version__
from encore.audio.files import file_sha256
from encore.errors import InputError
from encore.evidence.archive import HINT, Archive
from encore.files import parsed_json

SCHEMA = 1
NAME, SIGNATURE = "manifest.json", "manifest.json.sig"
UNSIGNED = (NAME, SIGNATURE)  # not in the manifest: one is it, the other is about it


@dataclass(frozen=True)
class Difference:
    """A member or a file that is not as the manifest says: changed, missing, or added."""

    name: str
    how: str

    def __str__(self) -> str:
        return f"{self.name} {self.how}"


def manifest_of(members: Mapping[str, bytes | Path], model: Mapping[str, Path], weights_sha256: str) -> bytes:
    """The manifest as a file.

    Args:
        members: what goes into the archive. model: the model's files by name, in the archive or not.
        weights_sha256: hash over all weights, as `run.json` has it.
    """
    told = {
        "schema": SCHEMA,
        "made_with": f"encore {__version__}",
        "members": {name: _entry(members[name]) for name in sorted(members)},
        "model": {name: _entry(model[name]) for name in sorted(model)},
        "weights_sha256": weights_sha256,
    }
    return (json.dumps(told, indent=2) + "\n").encode()


def read_manifest(archive: Archive) -> dict[str, Any]:
    """The manifest of an archive.

    Raises:
        InputError: there is none, or it can't be read.
    """
    try:
        found = parsed_json(archive.read(NAME), NAME)
        if found["schema"] != SCHEMA:
            raise InputError(
                f"{archive.path} has a manifest of schema {found['schema']!r}", "check it with a newer Encore"
            )
        for table in ("members", "model"):
            for entry in found[table].values():
                if not (isinstance(entry["sha256"], str) and isinstance(entry["bytes"], int)):
                    raise TypeError("a hash or a size is missing")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the manifest of {archive.path} can't be read: {error!r}", HINT) from error
    return dict(found)


def differences(archive: Archive, manifest: Mapping[str, Any]) -> list[Difference]:
    """What in the archive is not what the manifest says; all of it, in the order of names."""
    listed, there = manifest["members"], set(archive.names) - set(UNSIGNED)
    found = []
    for name in sorted({*listed, *there}):
        if name not in there:
            found.append(Difference(name, "is missing"))
        elif name not in listed:
            found.append(Difference(name, "was added"))
        elif archive.size(name) != listed[name]["bytes"] or archive.sha256(name) != listed[name]["sha256"]:
            found.append(Difference(name, "was changed"))
    return found


def run_differences(run: Path, manifest: Mapping[str, Any]) -> list[Difference]:
    """What in a run's folder is not what the bundle of that run says: its records and the model's files."""
    records = {name: entry for name, entry in manifest["members"].items() if name in ("request.json", "run.json")}
    model = {f"model/{name}": entry for name, entry in manifest["model"].items() if name != "README.md"}
    found = []
    for name, entry in {**records, **model}.items():
        file = run / name
        if ".." in Path(name).parts or not file.is_file():
            found.append(Difference(name, "is missing"))
        elif file.stat().st_size != entry["bytes"] or file_sha256(file) != entry["sha256"]:
            found.append(Difference(name, "is not the one that was bundled"))
    return found


def _entry(content: bytes | Path) -> dict[str, Any]:
    if isinstance(content, Path):
        return {"sha256": file_sha256(content), "bytes": content.stat().st_size}
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
