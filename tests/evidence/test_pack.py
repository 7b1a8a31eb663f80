"""What is in a bundle."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tests.report.made_run import row, rows, write_run

from encore.errors import InputError
from encore.evidence.pack import pack

MEMBERS = {
    "bom.cdx.json", "evaluation.json", "log.jsonl", "manifest.json", "metrics.json", "model-card.md", "report.html",
    "request.json", "run.json", "versions.json",
}  # fmt: skip


def test_everything_is_there_and_in_the_manifest(made: Path, bundle: Path) -> None:
    assert bundle == made.parent / "made.evidence.zip"
    with zipfile.ZipFile(bundle) as archive:
        assert set(archive.namelist()) == MEMBERS
        manifest = json.loads(archive.read("manifest.json"))
        assert set(manifest["members"]) == MEMBERS - {"manifest.json"}
        for name, entry in manifest["members"].items():
            content = archive.read(name)
            assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        assert archive.read("metrics.json") == (made / "metrics.json").read_bytes()
        assert b"No evidence of retention" in archive.read("report.html")
        assert b"model-index" in archive.read("model-card.md")
        assert json.loads(archive.read("versions.json"))["plugins"][0]["sha256"] == "d" * 64
    assert manifest["model"] == {"model.safetensors": {"sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7}}
    assert manifest["weights_sha256"] == "e" * 64


def test_two_bundles_are_equal_and_the_model_comes_on_demand(made: Path, bundle: Path, tmp_path: Path) -> None:
    assert pack(made, tmp_path / "again.zip").read_bytes() == bundle.read_bytes()
    (made / "retain-self").mkdir()
    (made / "retain-self" / "captions.json").write_text("{}")
    with zipfile.ZipFile(pack(made, tmp_path / "with.zip", with_model=True)) as archive:
        assert set(archive.namelist()) == MEMBERS | {"model/model.safetensors", "retain-self/captions.json"}


def test_a_run_that_is_not_whole(made: Path) -> None:
    (made / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights"):
        pack(made)
    (made / "metrics.json").unlink()
    with pytest.raises(InputError, match="was not measured"):
        pack(made)
    assert not list(made.parent.glob("*.zip"))


def bom_of(bundle: Path) -> dict[str, Any]:
    with zipfile.ZipFile(bundle) as archive:
        return json.loads(archive.read("bom.cdx.json"))


def test_the_bill_of_materials(bundle: Path) -> None:
    """The keys that CycloneDX 1.6 asks for, and values it allows (checked against its schema when this was written)."""
    bom = bom_of(bundle)
    assert (bom["bomFormat"], bom["specVersion"], bom["version"]) == ("CycloneDX", "1.6", 1)
    assert bom["serialNumber"].startswith("urn:uuid:")
    model = bom["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["pedigree"]["ancestors"][0]["name"] == "tiny"
    assert model["components"][0]["hashes"][0]["content"] == hashlib.sha256(b"weights").hexdigest()
    figures = {(f["type"], f["slice"]): f for f in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    assert figures["NLL, forget", "forget"]["confidenceInterval"]["lowerBound"] == "4.4"
    assert all(isinstance(figure["value"], str) for figure in figures.values())
    kinds = {"machine-learning-model", "library", "data", "file"}
    references = []
    for part in [model, *model["pedigree"]["ancestors"], *model["components"], *bom["components"]]:
        assert part["type"] in kinds
        assert part["name"]
        references.append(part["bom-ref"])
        for digest in part.get("hashes", []):
            assert (digest["alg"], len(digest["content"])) == ("SHA-256", 64)
    assert len(set(references)) == len(references)
    assert {entry["ref"] for entry in bom["dependencies"]} <= set(references)
    assert {"pkg:pypi/torch@2.13.0", "pkg:pypi/encore-music@0.1.0"} <= {p.get("purl") for p in bom["components"]}
    assert [part["name"] for part in bom["components"] if part["type"] == "data"] == ["One", "Two", "Three"]


def test_names_that_are_not_text(tmp_path: Path) -> None:
    made = write_run(tmp_path / "made", results=[*rows(), row("x", "unlearned", "forget", 1.0, note="byte \udcff")])
    request = json.loads((made / "request.json").read_text())
    request["forget"][0]["title"] = "byte \udcff"
    (made / "request.json").write_text(json.dumps(request))
    assert bom_of(pack(made))["components"]
