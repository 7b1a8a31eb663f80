"""What embedders make of codes and of recordings: vectors, and tags where they have some."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encore.api import Backend, Embedder

Floats = NDArray[np.float64]
EncodedTrack = tuple[Floats, Floats | None]  # vectors [N, D], tags [N, C]
Embedders = Mapping[str, Embedder]
BATCH = 8  # items played and heard at once


@torch.no_grad()
def hear_codes(embedders: Embedders, codes: Iterable[Tensor], backend: Backend) -> dict[str, EncodedTrack]:
    """Codes [K, T] of any lengths, by the name of each embedder; what has to be played is played once for all.

    Neighbours of one length go together: an embedder that pools over time must not see padding.
    """
    found: dict[str, list[EncodedTrack]] = {name: [] for name in embedders}
    for batch in _alike(codes):
        played = None
        for name, embedder in embedders.items():
            vectors = embedder.embed_codes(batch)
            if vectors is not None:
                found[name].append((_floats(vectors), None))
                continue
            if played is None:
                played = backend.decode(batch.to(backend.device)).mean(1).cpu()  # [N, S], mono
            found[name].append(_hear(embedder, played, backend.sample_rate))
    return {name: _stacked(rows) for name, rows in found.items()}


def _alike(codes: Iterable[Tensor]) -> Iterator[Tensor]:
    """Neighbours of one shape, stacked, at most `BATCH`."""
    for _, group in itertools.groupby(codes, lambda item: item.shape):
        items = list(group)
        yield from (torch.stack(items[start : start + BATCH]) for start in range(0, len(items), BATCH))


@torch.no_grad()
def hear_audio(embedder: Embedder, sounds: Iterable[Tensor], rate: int) -> EncodedTrack:
    """Mono waveforms [S] of any lengths, at `rate` Hz."""
    return _stacked([_hear(embedder, sound[None], rate) for sound in sounds])


def resampled(audio: Tensor, rate: int, wanted: int) -> Tensor:
    """[N, S] at `rate` -> [N, S'] at `wanted`."""
    if rate == wanted:
        return audio
    import soxr

    return torch.from_numpy(soxr.resample(audio.numpy().T, rate, wanted).T.copy())


def as_tensors(heard: Mapping[str, EncodedTrack]) -> dict[str, Tensor]:
    """By kind and name, as a file of tensors keeps them."""
    return {
        f"{kind}.{name}": torch.from_numpy(array)
        for name, arrays in heard.items()
        for kind, array in zip(("vectors", "tags"), arrays, strict=True)
        if array is not None
    }


def from_tensors(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, EncodedTrack]:
    """What `as_tensors` was given."""
    tags = {name: tensors.get(f"tags.{name}") for name in names}
    return {
        name: (tensors[f"vectors.{name}"].numpy(), own.numpy() if own is not None else None)
        for name, own in tags.items()
    }


def _hear(embedder: Embedder, audio: Tensor, rate: int) -> EncodedTrack:
    vectors, tags = embedder.embed_with_tags(resampled(audio, rate, embedder.sample_rate))
    return _floats(vectors), _floats(tags) if tags is not None else None


def _floats(tensor: Tensor) -> Floats:
    return np.asarray(tensor.double().cpu().numpy())


def _stacked(rows: Sequence[EncodedTrack]) -> EncodedTrack:
    tags = [tags for _, tags in rows if tags is not None]
    return np.concatenate([vectors for vectors, _ in rows]), np.concatenate(tags) if tags else None
