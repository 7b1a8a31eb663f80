"""Names, model families and hashes of models."""

from __future__ import annotations

from collections.abc import Mapping
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


def absolute_folder(given: str) -> str:
    """The absolute path of a folder; the names of embedded and hub models are kept."""
    folder = Path(given)
    return str(folder.resolve()) if folder.is_dir() and not assets.model_folder(given) else given


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


def open_model(
    family: type[Backend], given: str, *, revision: str | None = None, offline: bool = False, device: str = "cpu"
) -> Backend:
    """Load a model that is to be trained or to generate.

    Args:
        family: the model's.
        given: see `model_name`.
        revision: of the model, for one on the Hugging Face Hub.
        offline: do not download anything.
        device: to load it on.

    Raises:
        InputError: it can't be loaded, or a weight is not finite.
    """
    import torch

    backend = family.load(model_name(given), revision=revision, offline=offline, device=device)
    for module in (backend.module, *backend.frozen().values()):
        for name, weight in module.named_parameters():
            if not torch.isfinite(weight).all():
                raise InputError(
                    f"the weights of {given} are not finite, first of all {name}",
                    "use another model, or train it again with a lower --lr",
                )
    return backend


def _refuse_file(given: str) -> None:
    path = Path(given)
    if assets.model_folder(given) or not path.is_file():
        return
    hint = f"name its folder: {path.parent}" if (path.parent / "config.json").exists() else "name the model's folder"
    raise InputError(f"the model {given} is a file, and a model is a folder", hint)


def model_sha256(backend: Backend) -> str:
    """Hash of all weights, including the frozen parts."""
    return module_sha256(backend.module, *backend.frozen().values())


def check_golds(models: Mapping[str, str]) -> None:
    """Refuse a gold that is one of the other models: a comparison with it shows nothing, and looks like success.

    Args:
        models: hashes of weights, or names; by role ("gold", "gold2"), or in words for a model that is no gold.

    Raises:
        InputError: gold or gold2 is another of the models.
    """
    for gold, model in models.items():
        same = next((role for role, other in models.items() if role != gold and other == model), None)
        if same is not None and (gold == "gold2" or (gold == "gold" and same != "gold2")):
            raise InputError(
                f"{gold} has the same weights as {same}, so that comparing with it would show nothing",
                "gold is a model trained without the tracks, gold2 another one of another seed",
            )
