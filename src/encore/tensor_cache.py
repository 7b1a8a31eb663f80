"""A disk cache of tensors, keyed by everything they depend on.

An entry is one safetensors file; its metadata hold the full key and a SHA-256 over names, types, shapes and bytes. An
entry that does not match its hash or key (flipped bits, a truncated file, a wrong header) is computed again and
replaced. Writes are atomic. A folder that can't be written only costs time and one warning.
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
    """The cache can't be used; work continues without it."""


class TensorCache:
    """A cache folder. Any number of processes may share one.

    Args:
        folder: created on the first write; default `settings.cache_folder()`.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = cache_folder() if folder is None else Path(folder)
        self._warned = False

    def get_or_make(self, key_parts: tuple[str, ...], make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors cached under a key; if there are none, the result of `make`, which is then cached.

        Args:
            key_parts: everything the result depends on: its kind, hashes of input and weights, settings.
            make: computes the tensors; its exceptions are passed on, and nothing is cached.

        Returns:
            Contiguous tensors on the CPU that the caller may change.
        """
        cached = self.get(key_parts)
        return self.put(key_parts, make()) if cached is None else cached

    def get(self, key_parts: tuple[str, ...]) -> dict[str, Tensor] | None:
        """The tensors cached under a key; None if there are none."""
        key, path = self._place(key_parts)
        return self._read(path, key)

    def put(self, key_parts: tuple[str, ...], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cache tensors under a key, replacing an earlier entry.

        Returns:
            The tensors as `get` returns them.
        """
        key, path = self._place(key_parts)
        owned = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        self._write(path, key, owned)
        return owned

    def _place(self, key_parts: tuple[str, ...]) -> tuple[str, Path]:
        """The full key, and the path of its entry."""
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
                    f"the cache {self.folder} can't be written: {reason}; set ENCORE_CACHE to another folder",
                    CacheWarning,
                    stacklevel=3,
                )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over tensors, sorted by name: names, types, shapes, bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()
