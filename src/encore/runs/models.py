"""What `--model` names, and whether two models are one."""

from __future__ import annotations

from pathlib import Path

from encore import assets
from encore.api import Backend
from encore.errors import InputError
from encore.fingerprint import module_sha256


def model_name(given: str) -> str:
    """The name a backend loads, and a run remembers: a folder by its absolute path, a run's folder as the run's model.

    Raises:
        InputError: the run in that folder is not complete.
    """
    folder = Path(given)
    if assets.model_folder(given) or not folder.is_dir():
        return given
    if (folder / "run.json").exists():
        folder = folder / "model"
    elif (folder / "request.json").exists():
        raise InputError(f"the run in {given} did not finish, so it has no model", "go on with it: --resume")
    return str(folder.resolve())


def model_sha256(backend: Backend) -> str:
    """Hash of all weights, the frozen parts' too."""
    return module_sha256(backend.module, *backend.frozen().values())
