"""Disk cache of the results of models on clips: those of base and golds are the same for every run."""

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
from encore.curvature.fisher import clips_sha256
from encore.plugins import installed
from encore.settings import cache_folder
from encore.store.environment import hardware, versions
from encore.store.model_name import model_sha256
from encore.tensor_cache import TensorCache

Key = tuple[str, ...]
KERNELS = ("ENCORE_NATIVE", "ENCORE_CPU_ISA", "ENCORE_CUDA_KERNEL")  # environment variables that select a kernel


class ResultCache:
    """Named tensors, keyed by all that affects them to the last bit: weights, clips, settings, code, libraries, CPU.

    Each model is hashed once, so its weights must not change while the cache is in use.

    Args:
        cache: where tensors are stored; None stores nothing.
    """

    def __init__(self, cache: TensorCache | None) -> None:
        self.cache = cache
        self._models: WeakKeyDictionary[Backend, str] = WeakKeyDictionary()
        self._environments: dict[tuple[str, int], str] = {}  # (device, threads) -> digest

    def key(self, name: Hashable, settings: Hashable, models: Sequence[Backend], clips: Sequence[Clip]) -> Key:
        """The key of a result of models on clips; empty without a cache."""
        if self.cache is None:
            return ()
        device = str(models[0].device) if models else "cpu"
        place = device, torch.get_num_threads()
        if place not in self._environments:
            self._environments[place] = _digest(_environment(device))
        tracks = [clip.track for clip in clips]
        return (
            "evaluation", json.dumps([name, settings]), self._environments[place], *map(self._model_digest, models),
            _digest([clips_sha256(clips), tracks]),
        )  # fmt: skip

    def get(self, key: Key) -> Mapping[str, Tensor] | None:
        return self.cache.get(key) if self.cache is not None else None

    def put(self, key: Key, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Store tensors; returns them as `get` will, so that results are the same with and without a cache."""
        if self.cache is not None:
            return self.cache.put(key, tensors)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def get_or_make(self, key: Key, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        cached = self.get(key)
        return self.put(key, make()) if cached is None else cached

    def _model_digest(self, backend: Backend) -> str:
        if backend not in self._models:
            frozen = [backend.name, backend.settings, model_sha256(backend)]
            trained = [name for name, weight in backend.module.named_parameters() if weight.requires_grad]
            self._models[backend] = _digest([*frozen, trained])
        return self._models[backend]


def evaluation_cache() -> TensorCache:
    """The cache of `encore eval`: `evaluations` in the cache folder, which may be deleted at any time."""
    return TensorCache(cache_folder() / "evaluations")


def named(lists: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Flatten lists of tensors to tensors named `NAME.INDEX`, whose names sort in order."""
    return {f"{name}.{i:06d}": item for name, items in lists.items() for i, item in enumerate(items)}


def listed(tensors: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """The inverse of `named`, without empty lists."""
    lists: dict[str, list[Tensor]] = {}
    for name in sorted(tensors):
        lists.setdefault(name.rpartition(".")[0], []).append(tensors[name])
    return lists


def _environment(device: str) -> dict[str, Any]:
    """What affects the last bits of results: versions, hardware, instruction set, kernels."""
    return {
        "versions": versions(),
        "plugins": installed(),
        "hardware": hardware(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "matmul": torch.get_float32_matmul_precision(),
        "kernels": {name: os.environ.get(name) for name in KERNELS},
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
