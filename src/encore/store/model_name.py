"""Names, model families and hashes of models."""

from __future__ import annotations

from pathlib import Path

from encore import assets
from encore.api import Backend
from encore.errors import InputError
from encore.hashing import module_sha256
from encore.store.run_folder import read_json

BACKEND = "musicgen"  # the default model family


def model_name(given: str) -> str:
    """The name that a backend loads and a run records: an absolute path for a folder, the model of a run's folder.

    Raises:
        InputError: it is a file, or the run in that folder is not complete.
    """
    folder = Path(given)
    _refuse_file(given)
    if assets.model_folder(given) or not folder.is_dir():
        return given
    if (folder / "run.json").exists():
        folder = folder / "model"
    elif (folder / "request.json").exists():
        raise InputError(f"the run in {given} did not finish, so it has no model", "resume it with --resume")
    return str(folder.resolve())


def backend_name(model: str, given: str | None = None) -> str:
    """The model family that opens `model`: the given one, else that of the run in this folder, else MusicGen.

    Raises:
        InputError: it is a file, or the folder's `run.json` can't be read.
    """
    _refuse_file(model)
    run = Path(model) / "run.json"
    if given is not None or assets.model_folder(model) or not run.exists():
        return given or BACKEND
    try:
        return str(read_json(run)["model"]["backend"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{run} was not written by this version of Encore: {error!r}", "run it again") from error


def _refuse_file(given: str) -> None:
    path = Path(given)
    if assets.model_folder(given) or not path.is_file():
        return
    hint = f"name its folder: {path.parent}" if (path.parent / "config.json").exists() else "name the model's folder"
    raise InputError(f"the model {given} is a file, and a model is a folder", hint)


def model_sha256(backend: Backend) -> str:
    """Hash of all weights, including the frozen parts."""
    return module_sha256(backend.module, *backend.frozen().values())
