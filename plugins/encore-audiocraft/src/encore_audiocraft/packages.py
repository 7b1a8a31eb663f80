"""audiocraft's checkpoints: `state_dict.bin` with the language model, `compression_state_dict.bin` with the codec.

Each is a dictionary of weights (`best_state`) and of the configuration they were trained with (`xp.cfg`, YAML), as
torch.save writes it. That is a pickle: it is only ever read by torch's weights-only loader, which runs no code.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from encore.errors import InputError, first_line
from encore.files import atomic_write
from encore_audiocraft import refusals

LM, CODEC = refusals.LM, "compression_state_dict.bin"
STATE, CONFIG, ELSEWHERE = "best_state", "xp.cfg", "pretrained"

Package = dict[str, Any]
State = dict[str, Tensor]


def read(path: Path) -> Package:
    """Read a checkpoint, with its weights on the CPU and in the type they are stored in.

    Raises:
        InputError: the file holds anything but plain data and tensors, or is damaged, or is no such checkpoint.
    """
    try:
        if not zipfile.is_zipfile(path):  # older files are bare pickles; MusicGen is younger than that
            raise zipfile.BadZipFile("it is no archive, as torch.save writes it")
        package = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than weights, and to read it would mean to run what it holds",
            "take the checkpoint from those who published the model; it was not opened",
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} can't be read as a checkpoint of audiocraft: {first_line(error)}") from error
    named_elsewhere = isinstance(package, dict) and isinstance(package.get(ELSEWHERE), str)
    if not named_elsewhere and not _is_export(package):
        raise InputError(
            f"{path} is not what audiocraft exports: a dictionary with {STATE} and {CONFIG}",
            "export a checkpoint of a training run with audiocraft.utils.export",
        )
    return package


def _is_export(package: Any) -> bool:
    if not isinstance(package, dict) or not isinstance(package.get(CONFIG), str):
        return False
    state = package.get(STATE)
    return isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    )


def write(path: Path, package: Package) -> None:
    """Write a checkpoint, whole or not at all."""
    with atomic_write(path) as staging:
        torch.save(package, staging)


def with_state(package: Package, state: State) -> Package:
    """The package with other weights in their places; every other entry, and their order, stays."""
    return {key: state if key == STATE else value for key, value in package.items()}


def config(package: Package, path: Path | str) -> DictConfig:
    """The configuration, as audiocraft reads it.

    Raises:
        InputError: it is not one.
    """
    try:
        cfg = OmegaConf.create(package[CONFIG])
        if isinstance(cfg, DictConfig):
            return cfg
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise InputError(f"the configuration in {path} can't be read: {first_line(error)}") from error
    raise InputError(f"the configuration in {path} is no mapping")
