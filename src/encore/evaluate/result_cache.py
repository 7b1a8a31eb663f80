"""What evaluations compute of models on clips, on disk: of base and golds it is the same in every run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from encore.api import Backend, Clip
from encore.cache import TensorCache
from encore.curvature.fisher import clips_sha256
from encore.plugins import installed
from encore.settings import cache_folder
from encore.store.environment import hardware, versions
from encore.store.model_name import model_sha256

Key = tuple[str, ...]
KERNELS = ("ENCORE_NATIVE", "ENCORE_CPU_ISA", "ENCORE_CUDA_KERNEL")  # environment variables that choose one


class Kept:
    """Named tensors by all that they depend on to the last bit: weights, clips, settings, code, libraries, processor.

    Models must stay as they are while one is in use: a model is hashed once.

    Args:
        cache: None keeps nothing.
    """

    def __init__(self, cache: TensorCache | None) -> None:
        self.cache = cache
        self._models: WeakKeyDictionary[Backend, str] = WeakKeyDictionary()
        self._here: dict[tuple[str, int], str] = {}  # device, threads -> what results depend on beside all else

    def key(self, what: Hashable, settings: Hashable, models: Sequence[Backend], clips: Sequence[Clip]) -> Key:
        """Under which the results of models on clips are kept; empty where nothing is."""
        if self.cache is None:
            return ()
        device = str(models[0].device) if models else "cpu"
        place = device, torch.get_num_threads()
        if place not in self._here:
            self._here[place] = _digest(_surroundings(device))
        tracks = [clip.track for clip in clips]
        return (
            "evaluation", json.dumps([what, settings]), self._here[place], *map(self._model, models),
            _digest([clips_sha256(clips), tracks]),
        )  # fmt: skip

    def find(self, key: Key) -> Mapping[str, Tensor] | None:
        return self.cache.get(key) if self.cache is not None else None

    def keep(self, key: Key, made: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors as `find` will return them, so that figures are the same with a cache, without, and from it."""
        if self.cache is not None:
            return self.cache.put(key, made)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in made.items()}

    def get_or_make(self, key: Key, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        found = self.find(key)
        return self.keep(key, make()) if found is None else found

    def _model(self, backend: Backend) -> str:
        if backend not in self._models:
            frozen = [backend.name, backend.settings, model_sha256(backend)]
            trained = [name for name, weight in backend.module.named_parameters() if weight.requires_grad]
            self._models[backend] = _digest([*frozen, trained])
        return self._models[backend]


def evaluation_cache() -> TensorCache:
    """Where `encore eval` keeps them: `evaluations` in the cache folder, which may be deleted at any time."""
    return TensorCache(cache_folder() / "evaluations")


def named(lists: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Lists of tensors by name -> tensors by name and place, which sort as they stand."""
    return {f"{name}.{i:06d}": item for name, items in lists.items() for i, item in enumerate(items)}


def listed(tensors: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """The lists that `named` was given; one without items is left out."""
    lists: dict[str, list[Tensor]] = {}
    for name in sorted(tensors):
        lists.setdefault(name.rpartition(".")[0], []).append(tensors[name])
    return lists


def _surroundings(device: str) -> dict[str, Any]:
    """Threads and instructions change the order of sums, and with it the last bits."""
    return {
        "versions": versions(),
        "plugins": installed(),
        "hardware": hardware(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "matmul": torch.get_float32_matmul_precision(),
        "kernels": {name: os.environ.get(name) for name in KERNELS},
    }


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
