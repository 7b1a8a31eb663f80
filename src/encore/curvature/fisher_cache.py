"""Cached Fisher diagonals of backends: each is computed once, and resumed after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from encore.api import Backend, Clip
from encore.curvature.fisher import Labels, backend_fisher, clips_sha256
from encore.curvature.fisher_file import Fisher
from encore.errors import InputError
from encore.hashing import module_sha256
from encore.tensor_cache import CacheWarning


def cached_fisher(
    backend: Backend,
    clips: Sequence[Clip],
    folder: Path | None,
    *,
    mode: Labels = "empirical",
    micro_batch_size: int = 8,
    seed: int = 0,
    checkpoint_seconds: float = 60.0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Fisher:
    """`backend_fisher` with a cache in `folder`; a file takes 4 bytes per trainable weight.

    The file's name is the hash of everything that the Fisher depends on, to the last bit: weights (the text encoder's
    too), settings, clips, labels, their seed, and the batch size, which changes the order of sums. A damaged file is
    replaced. A folder that can't be written costs speed and one warning.

    Args:
        folder: None keeps nothing.
        checkpoint_seconds: how often an unfinished one is written.
    """

    def compute(checkpoint: Path | None) -> Fisher:
        return backend_fisher(
            backend, clips, mode=mode, micro_batch_size=micro_batch_size, seed=seed, checkpoint=checkpoint,
            checkpoint_seconds=checkpoint_seconds, progress=progress,
        )  # fmt: skip

    if folder is None:
        return compute(None)
    key = {
        "model": module_sha256(backend.module, *backend.frozen().values()),
        "parameters": [name for name, weight in backend.module.named_parameters() if weight.requires_grad],
        "settings": backend.settings,
        "clips": clips_sha256(clips),
        "mode": mode,
        "micro_batch_size": micro_batch_size,
        "seed": seed if mode == "sampled" else None,  # else nothing is drawn
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        warnings.warn(
            f"the Fisher diagonal is not cached: {folder} can't be written; set ENCORE_CACHE",
            CacheWarning,
            stacklevel=2,
        )
        return compute(None)
    path = folder / f"{name}.safetensors"
    try:
        return compute(path)
    except InputError:
        path.unlink(missing_ok=True)
        return compute(path)
