"""What is in a bundle, and what is not."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tests.report.made_run import change, row, rows, tie_again, write_run

from encore.errors import InputError
from encore.evidence.pack import pack
from encore.evidence.verify import verify

RECORDS = {"evaluation.json", "metrics.json", "request.json", "run.json"}
AFTER = {f"samples/forget/{number:03d}-{track}.after.wav" for number, track in enumerate(("one", "two", "three"))}
MEMBERS = RECORDS | AFTER | {"bom.cdx.json", "manifest.json", "model-card.md", "report.html", "samples/index.json"}


def contents(bundle: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_everything_is_there_and_in_the_manifest(made: Path, bundle: Path) -> None:
    assert bundle == made.parent / "made.evidence.zip"
    members = contents(bundle)
    assert set(members) == MEMBERS
    manifest = json.loads(members["manifest.json"])
    assert set(manifest["members"]) == MEMBERS - {"manifest.json"}
    for name, entry in manifest["members"].items():
        content = members[name]
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert b"No evidence of retention" in members["report.html"]
    assert b"model-index" in members["model-card.md"]
    assert manifest["model"] == {"model.safetensors": {"sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7}}
    assert manifest["weights_sha256"] == "e" * 64
    assert manifest["includes"] == {"catalog": False, "before": False, "model": False}


def test_two_bundles_are_equal_and_the_model_comes_on_demand(made: Path, bundle: Path, tmp_path: Path) -> None:
    assert pack(made, tmp_path / "again.zip").read_bytes() == bundle.read_bytes()
    (made / "retain-self").mkdir()
    (made / "retain-self" / "captions.json").write_text("{}")
    members = contents(pack(made, tmp_path / "with.zip", with_model=True))
    assert set(members) == MEMBERS | {"model/model.safetensors", "retain-self/captions.json"}


def test_a_run_that_is_not_whole(made: Path) -> None:
    (made / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights"):
        pack(made)
    (made / "metrics.json").unlink()
    with pytest.raises(InputError, match="was not measured"):
        pack(made)
    assert not list(made.parent.glob("*.zip"))


@pytest.mark.parametrize("name", ["metrics.json", "run.json", "request.json"])
def test_case_C6_figures_of_another_evaluation_are_not_packed(made: Path, name: str) -> None:
    """What a kill between two writes leaves: a file that `evaluation.json` was not written for."""
    record = json.loads((made / name).read_text())
    (made / name).write_text(json.dumps(record, indent=1))
    with pytest.raises(InputError, match=f"{name} is not the file that evaluation.json was written for") as caught:
        pack(made)
    assert caught.value.hint == f"evaluate again: encore eval {made}"


def test_case_C1_a_model_with_code_is_not_packed(made: Path) -> None:
    (made / "model/modeling.py").write_text("raise SystemExit")
    with pytest.raises(InputError, match=r"modeling\.py is code"):
        pack(made)
    (made / "model/modeling.py").unlink()
    (made / "model/config.json").write_text(json.dumps({"sub": [{"auto_map": {"AutoModel": "m.M"}}]}))
    with pytest.raises(InputError, match=r"config\.json is a configuration with auto_map"):
        pack(made)


HOME = "/home/anna k/music"


@pytest.fixture
def private(made: Path) -> Path:
    """A run whose records name folders and a catalogue, in every place where a record can."""
    request = json.loads((made / "request.json").read_text())
    for name in ("forget", "retain", "holdout"):
        for track in request[name]:
            track |= {"file": f"{HOME}/{track['id']}.wav", "artist": f"Artist of {track['id']}"}
            track["text"] = track["file"]
    request["retain"][0] |= {"id": "Secret Song", "title": "A Secret Title", "caption": "a secret caption"}
    request["retain_source"] = f"the list {HOME}/retain.txt"
    request["skipped"] = [f"{HOME}/x.jsonl, line 3: {HOME}/Unreleased.wav is silent"]
    request["missing"] = [{"line": 9, "text": f"{HOME}/lost.wav", "why": f"no file '{HOME}/lost.wav'"}]
    request["model"]["name"] = f"{HOME}/models/tiny"
    request["calibration"] = {
        "missed": ["the decoy Secret Song (0.02 of 4.5)"], "chosen": {"lr": 0.1}, "tried": [], "decoys": ["a" * 64],
        "seconds": 1.0,
    }  # fmt: skip
    (made / "request.json").write_text(json.dumps(request))
    run = json.loads((made / "run.json").read_text())
    run["flags"]["tracks"]["value"] = f"{HOME}/list.txt"
    run["flags"]["catalog"] = {"value": "studio/x.jsonl", "from": "cli"}
    run["flags"]["model"] = {"value": "studio/models/tiny", "from": "cli"}
    run["flags"]["roots"] = {"value": [HOME, "/srv/other"], "from": "cli"}
    run["model"]["name"] = f"{HOME}/models/tiny"
    run["calibration"] = request["calibration"]
    run["notes"] = [
        f"left out {HOME}/Secret Song.wav", "Secret Song is “A Secret Title”", "see ~/x/y.txt, /srv/a/b.c",
        f"left out 1 track of retain and holdout that can't be used: {request['skipped'][0]}", "read studio/x.jsonl",
    ]  # fmt: skip
    for look in (run["outcome"]["before"], run["outcome"]["after"]):
        look |= {"memorised": {"Secret Song": 0.02}, "not_memorised": {"kept too": 3.2}, "worst": "Secret Song"}
    run["outcome"] |= {
        "worst": {"track": "Secret Song", "before": 0.02, "after": 0.4},
        "missed": [{"target": "worst", "message": "the memorised track Secret Song went from 0.02 to 0.4"}],
        "verbatim": {"retain": {"caption": {"before": 2, "lost": ["Secret Song", "kept too"]}}, "forget": {}},
    }
    (made / "run.json").write_text(json.dumps(run))
    metrics = json.loads((made / "metrics.json").read_text())
    for line in metrics["results"]:
        if line["set"] == "retain":
            line |= {"per_track": {"kept too": 0.1, "Secret Song": 0.2}, "note": "worst: Secret Song"}
            line["details"] = {"best": {"Secret Song": "greedy"}, "worst": ["Secret Song", f"{HOME}/a.wav"]}
    (made / "metrics.json").write_text(json.dumps(metrics))
    change(
        made / "evaluation.json", golds={"gold": f"{HOME}/gold"}, embedder=f"clap={HOME}/clap,latents",
        notes=[f"gold is {HOME}/gold"], embedders={"clap": f"clap {HOME}/clap"},
    )  # fmt: skip
    tie_again(made)
    return made


def test_case_C14_a_bundle_names_no_folder_and_of_the_catalogue_only_hashes(private: Path) -> None:
    bundle = pack(private)
    members = contents(bundle)
    text = b"\n".join(members.values()).decode("utf-8", "replace")
    for word in (
        "anna",
        "/home",
        "/srv",
        "/x/",
        "studio",
        "Unreleased",
        str(private.parent),
        "ecret",
        '"kept too"',
        "slow four",
        '"four"',
    ):
        assert word not in text, (word, [name for name, content in members.items() if word.encode() in content])
    request, metrics = (json.loads(members[name]) for name in ("request.json", "metrics.json"))
    assert [track["id"] for track in request["retain"]] == ["retain-0001", "retain-0002"]  # sorted as the ids are
    assert request["retain"][0]["sha256"] == "a" * 64
    assert request["retain"][0].keys() == {"id", "sha256", "pcm_sha256", "described_sha256", "split"}
    assert request["forget"][0]["title"] == "One"
    assert request["forget"][0]["file"] == "one.wav"
    retain = next(line for line in metrics["results"] if line["set"] == "retain")
    assert retain["per_track"] == {"retain-0002": 0.1, "retain-0001": 0.2}
    assert retain["note"] == "worst: retain-0001"
    assert retain["details"] == {"best": {"retain-0001": "greedy"}, "worst": ["retain-0001", "a.wav"]}
    run = json.loads(members["run.json"])
    assert run["notes"] == [
        "left out retain-0001.wav", "retain-0001 is “retain-0001”", "see y.txt, a/b.c",
        "left out 1 track of retain and holdout that can't be used: (withheld)", "read x.jsonl",
    ]  # fmt: skip
    assert request["skipped"] == ["(withheld)"]
    assert run["flags"]["model"]["value"] == "tiny"
    assert request["calibration"] == run["calibration"]
    assert run["calibration"]["missed"] == ["the decoy retain-0001 (0.02 of 4.5)"]
    outcome = run["outcome"]
    assert outcome["after"]["memorised"] == {"retain-0001": 0.02}
    assert outcome["worst"]["track"] == outcome["after"]["worst"] == "retain-0001"
    assert outcome["missed"][0]["message"] == "the memorised track retain-0001 went from 0.02 to 0.4"
    assert outcome["verbatim"]["retain"]["caption"]["lost"] == ["retain-0001", "retain-0002"]
    assert run["flags"]["roots"]["value"] == ["music", "other"]
    assert json.loads(members["evaluation.json"])["embedder"] == "clap=clap,latents"
    assert verify(bundle, run=private).members["request.json"].checked.startswith("reproduced")


def test_a_hub_model_keeps_its_name_in_sentences(private: Path) -> None:
    for file in ("request.json", "run.json"):
        record = json.loads((private / file).read_text())
        record["model"]["name"] = "owner/small"
        if file == "run.json":
            record["flags"]["model"] = {"value": "owner/small", "from": "cli"}
            record["notes"].append("owner/small was loaded")
        (private / file).write_text(json.dumps(record))
    tie_again(private)
    run = json.loads(contents(pack(private))["run.json"])
    assert (run["model"]["name"], run["flags"]["model"]["value"]) == ("owner/small", "owner/small")
    assert run["notes"][-1] == "owner/small was loaded"


def test_case_C14_the_catalogue_is_named_on_demand(private: Path) -> None:
    bundle = pack(private, with_catalog=True)
    members = contents(bundle)
    assert json.loads(members["request.json"])["retain"][0]["title"] == "A Secret Title"
    assert b"/home" not in b"".join(members.values())
    assert verify(bundle, run=private)


def test_case_C15_generations_of_the_model_before_come_on_demand(made: Path, tmp_path: Path) -> None:
    plain = contents(pack(made))
    assert not [name for name in plain if ".before." in name]
    assert b"before.wav" not in plain["samples/index.json"]
    assert b"data:audio" not in plain["report.html"]
    members = contents(pack(made, tmp_path / "with.zip", with_before=True))
    assert "samples/forget/000-one.before.wav" in members
    assert len(json.loads(members["samples/index.json"])) == 6


def bom_of(bundle: Path) -> dict[str, Any]:
    return json.loads(contents(bundle)["bom.cdx.json"])


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
    tie_again(made)
    assert bom_of(pack(made))["components"]


def test_what_a_link_leads_to_is_not_packed(made: Path, tmp_path: Path) -> None:
    """A run's folder may be a stranger's: what links in it lead to is not to be handed on."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (made / "samples/forget").rename(secret / "forget")
    (made / "samples/forget").symlink_to(secret / "forget")
    (made / "retain-self").mkdir()
    (made / "retain-self/captions.json").symlink_to(secret / "key")
    (made / "retain-self/notes.txt").write_text("not of the run")
    (secret / "key").write_text("a key")
    path = pack(made, tmp_path / "with.zip", with_model=True)
    assert {name.partition("/")[0] for name in contents(path)}.isdisjoint({"samples", "retain-self"})
    verify(path)


def test_settings_larger_than_any_are_not_read(made: Path) -> None:
    with (made / "model/config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"config\.json is larger than"):
        pack(made)
