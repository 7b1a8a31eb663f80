"""The model's bill of materials: CycloneDX 1.6 (ECMA-424), with a model card.

It has no timestamp and a serial number derived from the weights, so it is deterministic.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from encore import __version__
from encore.report.run_files import RunFiles
from encore.report.verdict import doubts

SPEC = "1.6"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/schema/bom-1.6.schema.json")


def bom(files: RunFiles, model: Mapping[str, str]) -> dict[str, Any]:
    """The components of the model: base, tracks and libraries, by hash and version.

    Args:
        model: SHA-256 of each of the model's files, by name.
    """
    run = files.run
    weights = str(run["unlearned_sha256"])
    libraries = [_library(name, version) for name, version in run["versions"].items() if name != "python"]
    plugins = [_plugin(plugin) for plugin in run["plugins"]]
    tracks = list(_tracks(files))
    component = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": f"{Path(str(run['model']['name'])).name}, without {run['tracks']['forget']} tracks",
        "version": weights[:16],
        "properties": _properties({"weights-sha256": weights, "method": run["method"], "seed": run["seed"]}),
        "pedigree": {"ancestors": [_base(run)], "notes": f"unlearning by {run['method']}, Encore {__version__}"},
        "components": [_file(name, digest) for name, digest in sorted(model.items())],
        "modelCard": _card(files),
    }
    parts = [*libraries, *plugins, *tracks]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, weights)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "encore", "version": __version__}]},
            "component": component,
        },
        "components": parts,
        "dependencies": [
            {"ref": "model", "dependsOn": [part["bom-ref"] for part in [*libraries, *plugins]]},
            *({"ref": part["bom-ref"]} for part in parts),
        ],
    }


def _base(run: Mapping[str, Any]) -> dict[str, Any]:
    properties = {"weights-sha256": run["model"]["sha256"], "revision": run["model"].get("revision") or ""}
    return {
        "type": "machine-learning-model",
        "bom-ref": "base",
        "name": Path(str(run["model"]["name"])).name,
        "properties": _properties(properties),
    }


def _library(name: str, version: Any) -> dict[str, Any]:
    package = "encore-music" if name == "encore" else name
    public = str(version).partition("+")[0]
    return {
        "type": "library",
        "bom-ref": f"library:{name}",
        "name": package,
        "version": str(version),
        "purl": f"pkg:pypi/{package.lower().replace('_', '-')}@{public}",
    }


def _plugin(plugin: Mapping[str, Any]) -> dict[str, Any]:
    component = {
        "type": "library",
        "bom-ref": f"plugin:{plugin['name']}",
        "name": f"{plugin['distribution']}: {plugin['name']}",
        "version": str(plugin["version"]),
    }
    return component | ({"hashes": _hashes(plugin["sha256"])} if plugin.get("sha256") else {})


def _tracks(files: RunFiles) -> Iterator[dict[str, Any]]:
    """The forget tracks."""
    for number, entry in enumerate(files.request["forget"]):
        yield {
            "type": "data",
            "bom-ref": f"forget:{number}",
            "name": str(entry.get("title") or entry["id"]),
            "hashes": _hashes(entry["sha256"]),
            "properties": _properties({"set": "forget", "id": entry["id"], "pcm-sha256": entry["pcm_sha256"]}),
            "data": [{"type": "dataset", "name": str(entry["id"])}],
        }


def _file(name: str, digest: str) -> dict[str, Any]:
    return {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": _hashes(digest)}


def _card(files: RunFiles) -> dict[str, Any]:
    measured = [line for line in files.table if "unlearned" in line.figures]
    figures = []
    for line in measured:
        row = line.figures["unlearned"]
        if row.value is None:
            continue
        figure: dict[str, Any] = {"type": line.label, "value": repr(row.value), "slice": line.set}
        if row.low is not None and row.high is not None:
            figure["confidenceInterval"] = {"lowerBound": repr(row.low), "upperBound": repr(row.high)}
        figures.append(figure)
    return {
        "modelParameters": {"task": "text-to-audio", "inputs": [{"format": "text"}], "outputs": [{"format": "audio"}]},
        "quantitativeAnalysis": {"performanceMetrics": figures},
        "considerations": {"technicalLimitations": doubts(files)},
    }


def _hashes(digest: Any) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": str(digest)}]


def _properties(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": f"encore:{name}", "value": str(value)} for name, value in values.items()]
