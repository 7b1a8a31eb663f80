"""`retain-self/` of a run folder: what the base model generated to be kept."""

from __future__ import annotations

from pathlib import Path

import torch

from encore.api import Backend, Clip
from encore.data.encode import wide
from encore.errors import InputError
from encore.store.run_folder import read_json, read_tensors
from encore.text import printable


def load_self_retain(run: Path, backend: Backend) -> list[Clip]:
    """The clips that `--retain self` kept, from a run folder.

    Raises:
        InputError: they can't be read, or are nothing that the model could have generated.
    """
    captions = read_json(run / "retain-self" / "captions.json", dict[str, str])
    file = run / "retain-self" / "codes.safetensors"
    codes = read_tensors(file)
    lacking = [track for track in captions if track not in codes]
    if lacking:
        raise InputError(f"{file} has no codes of {printable(lacking[0])}", "run it again")
    if wrong := [track for track in captions if not _could_be_of(backend, codes[track])]:
        raise InputError(f"{file} has codes of {printable(wrong[0])} that are none of {backend.name}", "run it again")
    return [Clip(track, caption, wide(codes[track])) for track, caption in captions.items()]


def _could_be_of(backend: Backend, codes: torch.Tensor) -> bool:
    """Whether codes [K, T] have the shape, the type and the range of this model's."""
    if codes.ndim != 2 or len(codes) != backend.codebooks or not 0 < codes.shape[1] <= backend.max_frames:
        return False
    if codes.is_floating_point() or not backend.has_tokens:
        return not backend.has_tokens and codes.is_floating_point() and bool(codes.isfinite().all())
    return codes.dtype != torch.bool and int(codes.min()) >= 0 and int(codes.max()) < backend.codebook_size
