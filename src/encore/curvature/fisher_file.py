"""Fisher diagonals: merging shards, saving and loading.

The file is safetensors: float tensors by parameter name, and metadata that say of what it is the Fisher. A SHA-256 over
the tensors is kept beside them, for the format itself does not notice a flipped bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from encore.errors import InputError
from encore.files import atomic_write
from encore.tensor_cache import digest

FORMAT = "encore-fisher/1"


@dataclass
class Fisher:
    """F = Σ_n g_n∘g_n, the sum over samples (divide by `samples` for the mean).

    Args:
        values: parameter name -> F, of the parameter's shape.
        samples: n, how many samples were added up.
        mode: what the gradients are of: "empirical", the loss on the data; "sampled", on the model's own predictions.
        model: SHA-256 of the weights it was taken at (`encore.hashing.module_sha256`).
    """

    values: dict[str, Tensor]
    samples: int
    mode: str
    model: str

    def merge(self, other: Fisher) -> Fisher:
        """The Fisher of both sets of samples.

        Raises:
            InputError: the two are not of the same model, mode and parameters.
        """
        if (self.model, self.mode) != (other.model, other.mode):
            mine, others = f"{self.mode}, {self.model[:12]}", f"{other.mode}, {other.model[:12]}"
            raise InputError(f"two Fisher diagonals of different model or mode can't be merged ({mine}; {others})")
        if {n: v.shape for n, v in self.values.items()} != {n: v.shape for n, v in other.values.items()}:
            raise InputError("two Fisher diagonals of different parameters can't be merged")
        values = {name: value + other.values[name].to(value.device) for name, value in self.values.items()}
        return Fisher(values, self.samples + other.samples, self.mode, self.model)

    def save(self, path: Path | str, *, about: Mapping[str, Any] | None = None) -> None:
        """Write it, whole or not at all. `about` is whatever else JSON can say of it; see `read_about`."""
        path = Path(path)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.values.items()}
        known = {"samples": self.samples, "mode": self.mode, "model": self.model, "about": dict(about or {})}
        metadata = {"format": FORMAT, "fisher": json.dumps(known, sort_keys=True), "sha256": digest(tensors)}
        with atomic_write(path) as staging:
            safetensors.torch.save_file(tensors, staging, metadata=metadata)

    @classmethod
    def load(cls, path: Path | str) -> Fisher:
        """Read what `save` wrote.

        Raises:
            InputError: it is missing, not a Fisher, or damaged.
        """
        path = Path(path)
        known, sha256 = _metadata(path)
        try:
            values = safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} can't be read as safetensors: {error}") from error
        if digest(values) != sha256:
            raise InputError(f"{path} is damaged: its tensors are not those that were written", "compute it again")
        return cls(values, int(known["samples"]), str(known["mode"]), str(known["model"]))


def read_about(path: Path | str) -> dict[str, Any]:
    """The argument `about` of `save`, without reading the tensors.

    Raises:
        InputError: it is missing or not a Fisher.
    """
    return dict(_metadata(Path(path))[0]["about"])


def _metadata(path: Path) -> tuple[dict[str, Any], str]:
    try:
        with safetensors.safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} can't be read as safetensors: {error}") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} holds no Fisher diagonal ({FORMAT})")
    return json.loads(metadata["fisher"]), metadata["sha256"]


def mean_over_weights(values: Mapping[str, Tensor]) -> float:
    """The mean of a Fisher diagonal over all weights of all parameters: what damping and caps are relative to."""
    total = sum(float(value.sum(dtype=torch.float64)) for value in values.values())
    return total / sum(value.numel() for value in values.values())
