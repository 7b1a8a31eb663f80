"""Open a pipeline part by part: known classes only, safetensors only, and no weight left to chance.

diffusers' own `DiffusionPipeline.from_pretrained` takes pickles where there is nothing else, runs code that a folder
brings along, and draws weights that a file lacks at random.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from torch import nn

from encore.errors import InputError, first_line
from encore.hub import fetchable, pretrained

INDEX = "model_index.json"
BACKENDS = {
    "StableAudioPipeline": "stable-audio",
    "AceStepPipeline": "ace-step",
    "AudioLDM2Pipeline": "audioldm2",
}
UNSUPPORTED = {
    "MusicLDMPipeline": (
        "MusicLDM can't be opened: diffusers has given its pipeline up, and under transformers 5 it fails at the first "
        "caption, since CLAP's text features are no longer the tensor that it takes them for"
    ),
    "AudioLDMPipeline": "AudioLDM can't be opened: diffusers has given its pipeline up; AudioLDM 2 is its successor",
    "StableAudio3Pipeline": "Stable Audio 3 is not supported yet: its denoiser and conditioning are others than 1's",
}


def open_parts(model: str, pipeline: str, library: str, *, revision: str | None, offline: bool) -> dict[str, Any]:
    """The parts of a pipeline as diffusers saves it, models in float32 and evaluation mode.

    Args:
        model: a folder, or a hub name.
        pipeline: the name of the class that it must be one of. library: the module of diffusers.pipelines that the
            pipeline's own model classes are in.

    Raises:
        InputError: there is no such model, it is another one, a file is missing or damaged, or weights are not numbers.
    """
    where = {"revision": revision, "local_files_only": offline or not fetchable(model, revision, INDEX)}
    try:
        index = _index(model, where)
        _check(model, index, pipeline, library)
        with quiet():
            known = {"what": f" as a {pipeline}", "hint": _hint(model), **where}
            return {name: _open(model, name, kind, known) for name, kind in _listed(index) if kind[0] is not None}
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        raise InputError(f"can't load {model} as a {pipeline}: {first_line(error)}", _hint(model)) from error


def _index(model: str, where: Mapping[str, Any]) -> dict[str, Any]:
    if Path(model).is_dir():
        path = Path(model, INDEX)
        if not path.is_file():
            raise InputError(f"{model} is not a diffusers pipeline: it has no {INDEX}", _hint(model))
    else:
        path = Path(hf_hub_download(model, INDEX, **where))
    index = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(index, dict):
        raise ValueError(f"{INDEX} is not an object")
    return index


def _check(model: str, index: Mapping[str, Any], pipeline: str, library: str) -> None:
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise InputError(f"{model} brings a pipeline class of its own, and code of a model is never run")
    if name in UNSUPPORTED:
        raise InputError(UNSUPPORTED[name], f"families that can be opened: {', '.join(BACKENDS.values())}")
    if name != pipeline:
        hint = f"--backend {BACKENDS[name]}" if name in BACKENDS else "`encore backends` lists what can be opened"
        raise InputError(f"{model} is a {name}, not a {pipeline}", hint)
    for part, kind in _listed(index):
        if kind[0] not in ("diffusers", "transformers", library, None):
            raise InputError(f"the {part} of {model} is code of its own ({kind[0]}), which is never run")


def _listed(index: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str | None, str | None]]]:
    for part, kind in index.items():
        if not part.startswith("_"):
            if not isinstance(kind, list) or len(kind) != 2:
                raise ValueError(f"{INDEX} says nothing usable of {part!r}")
            yield part, (kind[0], kind[1])


def _open(model: str, part: str, kind: tuple[str | None, str | None], where: Mapping[str, Any]) -> Any:
    library, name = kind
    made: Any
    if library == "diffusers":
        made = getattr(diffusers, str(name))
    elif library == "transformers":
        made = getattr(transformers, str(name))
    else:
        made = getattr(importlib.import_module(f"diffusers.pipelines.{library}"), str(name))
    is_network = isinstance(made, type) and issubclass(made, nn.Module)
    if not is_network:
        return pretrained(made, model, subfolder=part, **where)
    dtype: dict[str, Any] = {"torch_dtype" if issubclass(made, diffusers.ModelMixin) else "dtype": torch.float32}
    network, loading = pretrained(
        made, model, subfolder=part, use_safetensors=True, output_loading_info=True, **dtype, **where
    )
    for what in ("missing_keys", "mismatched_keys"):
        if loading[what]:
            first = sorted(map(str, loading[what]))[0]
            raise InputError(
                f"the {part} of {model} has {len(loading[what])} {what[:-5]} weights, first of all {first}"
            )
    for name, weight in network.state_dict().items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise InputError(f"the {part} of {model} has weights that are not numbers: {name}")
    return network.eval().requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars and remarks of diffusers and transformers off the terminal."""
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers' autoencoder still has torch's first weight_norm
        warnings.filterwarnings("ignore", module="torchsde")  # its time runs out by a rounding error
        for library in (diffusers.utils.logging, transformers.utils.logging):
            stack.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_error()
        if diffusers.utils.logging.is_progress_bar_enabled():
            stack.callback(diffusers.utils.logging.enable_progress_bar)
        if transformers.utils.logging.is_progress_bar_enabled():
            stack.callback(transformers.utils.logging.enable_progress_bar)
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        yield


def _hint(model: str) -> str:
    if Path(model).is_dir():
        return f"the folder needs {INDEX} and a folder a part, weights as safetensors, as save_pretrained writes them"
    return "a hub model must have been downloaded before, or the hub be reachable and --offline left out"
