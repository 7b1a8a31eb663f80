"""The manifest: SHA-256 of a bundle's members and of the model's files, and what was left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from encore import __version__
from encore.data.open_files import file_sha256
from encore.errors import InputError
from encore.evidence.archive import HINT, Archive
from encore.evidence.redaction import REQUEST, RUN, public_records
from encore.files import parsed_json
from encore.plugins import installed

SCHEMA = 2
NAME, SIGNATURE, TIMESTAMP = "manifest.json", "manifest.json.sig", "manifest.json.tsr"
UNLISTED = (NAME, SIGNATURE, TIMESTAMP)  # not in the manifest
INCLUDES = ("catalog", "before", "model")  # optional parts of a bundle


@dataclass(frozen=True)
class Difference:
    """A member or a file that differs from the manifest: changed, missing, or added."""

    name: str
    how: str

    def __str__(self) -> str:
        return f"{self.name} {self.how}"


def manifest_of(
    members: Mapping[str, bytes | Path],
    model: Mapping[str, Path],
    weights_sha256: str,
    includes: Mapping[str, bool] = MappingProxyType({}),
) -> bytes:
    """The manifest as a file.

    Args:
        members: contents or files of the archive's members, by name.
        model: the model's files by name, also if they are not in the archive.
        weights_sha256: hash of all weights, from `run.json`.
        includes: whether the bundle has each of `INCLUDES`.
    """
    manifest = {
        "schema": SCHEMA,
        "made_with": made_with(),
        "includes": dict(includes),
        "members": {name: _entry(members[name]) for name in sorted(members)},
        "model": {name: _entry(model[name]) for name in sorted(model)},
        "weights_sha256": weights_sha256,
    }
    return (json.dumps(manifest, indent=2) + "\n").encode()


def made_with() -> dict[str, str | None]:
    """Version and code hash of this Encore; equal ones write the same report."""
    sha256 = next((plugin["sha256"] for plugin in installed() if plugin["module"] == "encore.builtins"), None)
    return {"encore": __version__, "code_sha256": sha256}


def read_manifest(archive: Archive) -> dict[str, Any]:
    """The manifest of an archive.

    Raises:
        InputError: there is none, or it can't be read.
    """
    content = archive.read(NAME)
    try:
        manifest = parsed_json(archive.read(NAME), NAME)
        if manifest["schema"] != SCHEMA:
            raise InputError(
                f"{archive.path} has a manifest of schema {manifest['schema']!r}", "check it with a newer Encore"
            )
        keys = {"schema", "made_with", "includes", "members", "model", "weights_sha256"}
        if manifest.keys() != keys or content != (json.dumps(manifest, indent=2) + "\n").encode():
            raise ValueError("it is not written as Encore writes it")
        includes = manifest["includes"]
        if includes.keys() != set(INCLUDES) or not all(type(value) is bool for value in includes.values()):
            raise TypeError("it does not say what was left out")
        for table in ("members", "model"):
            for entry in manifest[table].values():
                if entry.keys() != {"sha256", "bytes"}:
                    raise TypeError("a hash or a size is missing")
                if not (isinstance(entry["sha256"], str) and isinstance(entry["bytes"], int)):
                    raise TypeError("a hash or a size is missing")
        if manifest["made_with"].keys() != {"encore", "code_sha256"}:
            raise TypeError("it does not say what made it")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"the manifest of {archive.path} can't be read: {error!r}", HINT) from error
    return dict(manifest)


def differences(archive: Archive, manifest: Mapping[str, Any]) -> list[Difference]:
    """All differences of the archive from the manifest, in the order of names."""
    listed, there = manifest["members"], set(archive.names) - set(UNLISTED)
    changes = []
    for name in sorted({*listed, *there}):
        if name not in there:
            changes.append(Difference(name, "is missing"))
        elif name not in listed:
            changes.append(Difference(name, "was added"))
        elif archive.size(name) != listed[name]["bytes"] or archive.sha256(name) != listed[name]["sha256"]:
            changes.append(Difference(name, "was changed"))
    return changes


def run_differences(run: Path, manifest: Mapping[str, Any]) -> list[Difference]:
    """Differences of a run's records and model files from its bundle.

    Raises:
        InputError: a record of the run can't be read.
    """
    changes = [Difference(name, "is missing") for name in (REQUEST, RUN) if not (run / name).is_file()]
    records = {} if changes else public_records(run, catalog=manifest["includes"]["catalog"], measured=False)
    for name, content in records.items():
        if _entry(content) != manifest["members"].get(name):
            changes.append(Difference(name, "is not the one that was bundled"))
    model = {f"model/{name}": entry for name, entry in manifest["model"].items() if name != "README.md"}
    for name, entry in model.items():
        file = run / name
        if ".." in Path(name).parts or not file.is_file():
            changes.append(Difference(name, "is missing"))
        elif file.stat().st_size != entry["bytes"] or file_sha256(file) != entry["sha256"]:
            changes.append(Difference(name, "is not the one that was bundled"))
    return changes


def _entry(content: bytes | Path) -> dict[str, Any]:
    if isinstance(content, Path):
        return {"sha256": file_sha256(content), "bytes": content.stat().st_size}
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
