"""Tensors that are costly to compute and follow from their inputs: kept on disk under a key made of those inputs.

An entry is one safetensors file; its metadata hold the key in full and a SHA-256 over names, types, shapes and bytes.
What does not fit its hash or its key (flipped bits, a cut file, a lying header) is computed anew and replaced. Writes
are atomic. A folder that can't be written costs speed and one warning, nothing else.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from encore.files import atomic_write
from encore.settings import cache_folder

VERSION = 1
"""Part of every key; raised when the format of entries changes."""


class CacheWarning(UserWarning):
    """The cache can't be used; the work goes on without it."""


class TensorCache:
    """A folder of tensors by content. Any number of processes may share one.

    Args:
        folder: made when first written to; default `settings.cache_folder()`.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = cache_folder() if folder is None else Path(folder)
        self._warned = False

    def get_or_make(self, key_parts: tuple[str, ...], make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors kept under a key; where there are none, those that `make` returns, kept from now on.

        Args:
            key_parts: everything the result depends on: what it is, the input's hash, the weights' hash, settings.
            make: computes the tensors; what it raises passes through, and nothing is kept.

        Returns:
            tensors on the CPU, contiguous, owned by the caller, whether they were kept or made.
        """
        kept = self.get(key_parts)
        return self.put(key_parts, make()) if kept is None else kept

    def get(self, key_parts: tuple[str, ...]) -> dict[str, Tensor] | None:
        """The tensors kept under a key, or None."""
        key, path = self._place(key_parts)
        return self._read(path, key)

    def put(self, key_parts: tuple[str, ...], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keep tensors under a key, in place of what is there.

        Returns:
            them as `get` will: on the CPU, contiguous, owned by the caller.
        """
        key, path = self._place(key_parts)
        owned = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        self._write(path, key, owned)
        return owned

    def _place(self, key_parts: tuple[str, ...]) -> tuple[str, Path]:
        """The key in full, and the file that it names."""
        key = json.dumps([VERSION, *key_parts])
        name = hashlib.sha256(key.encode()).hexdigest()
        return key, self.folder / name[:2] / f"{name}.safetensors"

    def _read(self, path: Path, key: str) -> dict[str, Tensor] | None:
        try:
            data = path.read_bytes()
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size]) if size < len(data) else None
            tensors = safetensors.torch.load(data)
        except (OSError, ValueError, RecursionError, SafetensorError):
            return None
        stored = header.get("__metadata__") if isinstance(header, dict) else None
        return tensors if stored == {"key": key, "sha256": digest(tensors)} else None

    def _write(self, path: Path, key: str, tensors: dict[str, Tensor]) -> None:
        data = safetensors.torch.save(tensors, metadata={"key": key, "sha256": digest(tensors)})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as staging:
                staging.write_bytes(data)
        except OSError as error:
            if not self._warned:
                self._warned = True
                reason = error.strerror or error
                warnings.warn(
                    f"nothing is kept in the cache {self.folder}: {reason}; set ENCORE_CACHE to another folder",
                    CacheWarning,
                    stacklevel=3,
                )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over tensors: names in order, types, shapes, bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()
