"""`encore bundle`: a run's evidence in one archive, by default without other music."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from encore.data.open_files import file_sha256
from encore.errors import InputError
from encore.evidence import signing, timestamp
from encore.evidence.archive import MAX_IN_MEMORY, write_archive
from encore.evidence.code import check_code
from encore.evidence.derived import derived
from encore.evidence.manifest import NAME, SIGNATURE, TIMESTAMP, manifest_of
from encore.evidence.redaction import canonical, public_records
from encore.report.run_files import read_run
from encore.store.evaluation_json import check_hashes
from encore.store.run_folder import read_json

SELF, SAMPLES = "retain-self", "samples"
IN_SELF = ("captions.json", "codes.safetensors")
LEFT_OUT = {  # what is left out by default, and the flag that includes it
    "catalog": "ids, titles and captions of the retain and held-out tracks, of which it has only hashes "
    "(--with-catalog)",
    "before": "generations of the model before, which may reproduce the tracks (--with-before)",
    "model": "the model's weights (--with-model)",
}


def pack(
    run: Path,
    out: Path | None = None,
    *,
    key: Path | None = None,
    timestamp_url: str | None = None,
    with_model: bool = False,
    with_catalog: bool = False,
    with_before: bool = False,
) -> Path:
    """Bundle a complete, measured run.

    Without a key and a timestamp the bundle is deterministic.

    Args:
        out: the file; default: `<run>.evidence.zip` beside the run's folder.
        key: PEM file of a private key to sign with.
        timestamp_url: time-stamping authority (RFC 3161).
        with_model: include the weights.
        with_catalog: name the retain and held-out tracks.
        with_before: include base's generations for the tracks.

    Returns:
        Path of the bundle.

    Raises:
        InputError: the run is not complete or not measured, its figures and records don't belong together, or its
            model is gone or holds code.
        MissingExtraError: see `encore.evidence.signing.sign`.
        UsageError: the key can't be used.
        EncoreError: it can't be written, or the authority gives no timestamp.
    """
    files = read_run(run)
    check_hashes(files.evaluation, run, run, f"evaluate again: encore eval {run}")
    model = model_files(run)
    if not any(name.endswith(".safetensors") for name in model):
        raise InputError(f"{run / 'model'} has no weights: there is nothing to give evidence of", "run it again")
    check_code({name: partial(_settings, file) for name, file in model.items()}, run)
    records = public_records(run, catalog=with_catalog)
    hashes = {name: file_sha256(file) for name, file in model.items()}
    members: dict[str, bytes | Path] = {**records, **derived(records, hashes)}
    members |= dict(_samples(run, with_catalog, with_before))
    if with_model:
        members |= {f"model/{name}": file for name, file in model.items()}
        retained = (run / SELF / name for name in IN_SELF)
        members |= {f"{SELF}/{file.name}": file for file in retained if file.is_file() and not file.is_symlink()}
    includes = {"catalog": with_catalog, "before": with_before, "model": with_model}
    manifest = manifest_of(members, model, str(files.run["unlearned_sha256"]), includes)
    about = {SIGNATURE: signing.sign(manifest, key)} if key is not None else {}
    if timestamp_url is not None:
        about[TIMESTAMP] = timestamp.request(manifest, timestamp_url)
    target = out or run.parent / f"{run.resolve().name}.evidence.zip"
    write_archive(target, {**members, NAME: manifest, **about})
    return target


def model_files(run: Path) -> dict[str, Path]:
    """The model's files by relative path, without the card, which changes with evaluations."""
    folder = run / "model"
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return {file.relative_to(folder).as_posix(): file for file in files if file.name != "README.md"}


def _settings(file: Path) -> bytes:
    if file.stat().st_size > MAX_IN_MEMORY:  # `encore verify` would not read it either
        raise InputError(f"{file} is larger than {MAX_IN_MEMORY:,} bytes, too large for what it should be")
    return file.read_bytes()


def _samples(run: Path, catalog: bool, before: bool) -> Iterator[tuple[str, bytes | Path]]:
    """Audio samples, with the index of their tracks and captions."""
    chosen = {
        f"{sample.set}/{sample.path.name}": sample.path
        for sample in read_run(run).samples
        if (catalog or sample.set != "retain") and (before or sample.role != "base")
    }
    if chosen:
        index = read_json(run / SAMPLES / "index.json", list[dict[str, Any]])
        yield f"{SAMPLES}/index.json", canonical([entry for entry in index if str(entry.get("file")) in chosen])
        yield from ((f"{SAMPLES}/{name}", path) for name, path in chosen.items())
