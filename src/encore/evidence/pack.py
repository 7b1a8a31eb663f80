"""`encore bundle`: everything a run claims, in one archive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from encore.errors import InputError
from encore.evidence import signing
from encore.evidence.archive import write_archive
from encore.evidence.bom import bom
from encore.evidence.manifest import NAME, SIGNATURE, manifest_of
from encore.report.card import model_card
from encore.report.files import REPORT, read_run
from encore.report.page import render
from encore.runs.evaluation_json import NAME as EVALUATION
from encore.runs.metrics_json import NAME as METRICS
from encore.runs.store import LOG

RECORDS = ("request.json", "run.json", METRICS, EVALUATION, LOG)
BOM, CARD, VERSIONS = "bom.cdx.json", "model-card.md", "versions.json"
SELF = "retain-self"


def pack(run: Path, out: Path | None = None, *, key: Path | None = None, with_model: bool = False) -> Path:
    """Bundle a complete, measured run; returns where the bundle is.

    Report and card are made anew, so that they say what the figures in the bundle say. Without a key it is the same
    bytes every time.

    Args:
        out: the file; default: `<run>.evidence.zip` beside the run's folder.
        key: PEM file of a private key to sign with. with_model: put the weights in, too.

    Raises:
        InputError: the run is not complete or not measured, or its model is gone.
        MissingExtraError, UsageError: it can't be signed.
        EncoreError: it can't be written.
    """
    files = read_run(run)
    model = model_files(run)
    if not any(name.endswith(".safetensors") for name in model):
        raise InputError(f"{run / 'model'} has no weights: there is nothing to give evidence of", "run it again")
    members: dict[str, bytes | Path] = {name: run / name for name in RECORDS if (run / name).is_file()}
    if (run / SELF).is_dir():
        members |= {f"{SELF}/{file.name}": file for file in (run / SELF).iterdir() if file.is_file()}
    members |= {
        REPORT: render(files).encode("utf-8"),
        CARD: model_card(files.run, files.results).encode("utf-8"),
        VERSIONS: _json({"versions": files.run["versions"], "plugins": files.run["plugins"], "eval": _of_eval(files)}),
    }
    hashes = {name: entry["sha256"] for name, entry in json.loads(manifest_of({}, model, ""))["model"].items()}
    members[BOM] = _json(bom(files, hashes))
    if with_model:
        members |= {f"model/{name}": file for name, file in model.items()}
    manifest = manifest_of(members, model, str(files.run["unlearned_sha256"]))
    signed = {SIGNATURE: signing.sign(manifest, key)} if key is not None else {}
    target = out or run.parent / f"{run.resolve().name}.evidence.zip"
    write_archive(target, {**members, NAME: manifest, **signed})
    return target


def model_files(run: Path) -> dict[str, Path]:
    """The model's files by their path in its folder; the card, which changes with the figures, is not one of them."""
    folder = run / "model"
    found = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return {file.relative_to(folder).as_posix(): file for file in found if file.name != "README.md"}


def _of_eval(files: Any) -> dict[str, Any]:
    return {name: files.evaluation[name] for name in ("versions", "plugins") if name in files.evaluation}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
