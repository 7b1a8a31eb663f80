"""Read `retain-self/` of a run folder: generations of the base model to keep."""

from __future__ import annotations

from pathlib import Path

import torch

from encore.api import Backend, Clip
from encore.data.encode import wide
from encore.errors import InputError
from encore.store.run_folder import read_json, read_tensors
from encore.text import printable


def load_self_retain(run: Path, backend: Backend) -> list[Clip]:
    """The clips of `--retain self` from a run folder.

    Args:
        run: the run's folder.
        backend: the model that generated them.

    Raises:
        InputError: they can't be read, or don't fit the model.
    """
    captions = read_json(run / "retain-self" / "captions.json", dict[str, str])
    file = run / "retain-self" / "codes.safetensors"
    codes = read_tensors(file)
    if missing := [track for track in captions if track not in codes]:
        raise InputError(f"{file} has no codes of {printable(missing[0])}", "run it again")
    if invalid := [track for track in captions if not _fits_model(backend, codes[track])]:
        raise InputError(f"{file} has invalid codes of {printable(invalid[0])} for {backend.name}", "run it again")
    return [Clip(track, caption, wide(codes[track])) for track, caption in captions.items()]


def _fits_model(backend: Backend, codes: torch.Tensor) -> bool:
    """Whether codes [K, T] have the shape, type and range of the model's codes."""
    if codes.ndim != 2 or len(codes) != backend.codebooks or not 0 < codes.shape[1] <= backend.max_frames:
        return False
    if codes.is_floating_point() or not backend.has_tokens:
        return not backend.has_tokens and codes.is_floating_point() and bool(codes.isfinite().all())
    return codes.dtype != torch.bool and int(codes.min()) >= 0 and int(codes.max()) < backend.codebook_size
