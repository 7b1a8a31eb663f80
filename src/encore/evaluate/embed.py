"""Embeddings and tags of codes and of audio."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encore.api import Backend, Embedder

Floats = NDArray[np.float64]
Embeddings = tuple[Floats, Floats | None]  # vectors [N, D], tags [N, C]
Embedders = Mapping[str, Embedder]
BATCH = 8  # items decoded and embedded at once


@torch.no_grad()
def embed_codes(embedders: Embedders, codes: Iterable[Tensor], backend: Backend) -> dict[str, Embeddings]:
    """Embeddings of codes [K, T] of any lengths, by embedder; each batch is decoded at most once.

    Only consecutive codes of equal length are batched: an embedder that pools over time must not see padding.
    """
    parts: dict[str, list[Embeddings]] = {name: [] for name in embedders}
    for batch in _batches(codes):
        audio = None
        for name, embedder in embedders.items():
            vectors = embedder.embed_codes(batch)
            if vectors is not None:
                parts[name].append((_floats(vectors), None))
                continue
            if audio is None:
                audio = backend.decode(batch.to(backend.device)).mean(1).cpu()  # [N, S], mono
            parts[name].append(_embed(embedder, audio, backend.sample_rate))
    return {name: _concatenated(rows) for name, rows in parts.items()}


def _batches(codes: Iterable[Tensor]) -> Iterator[Tensor]:
    """Consecutive codes of equal shape, stacked, at most `BATCH`."""
    for _, group in itertools.groupby(codes, lambda item: item.shape):
        items = list(group)
        yield from (torch.stack(items[start : start + BATCH]) for start in range(0, len(items), BATCH))


@torch.no_grad()
def embed_audio(embedder: Embedder, waveforms: Iterable[Tensor], rate: int) -> Embeddings:
    """Embeddings of mono waveforms [S] of any lengths, at `rate` Hz."""
    return _concatenated([_embed(embedder, waveform[None], rate) for waveform in waveforms])


def resampled(audio: Tensor, rate: int, target_rate: int) -> Tensor:
    """Resample [N, S] from `rate` to `target_rate`, [N, S']."""
    if rate == target_rate:
        return audio
    import soxr

    return torch.from_numpy(soxr.resample(audio.numpy().T, rate, target_rate).T.copy())


def as_tensors(embeddings: Mapping[str, Embeddings]) -> dict[str, Tensor]:
    """Embeddings by embedder as named tensors, for the cache."""
    return {
        f"{kind}.{name}": torch.from_numpy(array)
        for name, arrays in embeddings.items()
        for kind, array in zip(("vectors", "tags"), arrays, strict=True)
        if array is not None
    }


def from_tensors(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Embeddings]:
    """The inverse of `as_tensors`."""
    tags = {name: tensors.get(f"tags.{name}") for name in names}
    return {
        name: (tensors[f"vectors.{name}"].numpy(), array.numpy() if array is not None else None)
        for name, array in tags.items()
    }


def _embed(embedder: Embedder, audio: Tensor, rate: int) -> Embeddings:
    vectors, tags = embedder.embed_with_tags(resampled(audio, rate, embedder.sample_rate))
    return _floats(vectors), _floats(tags) if tags is not None else None


def _floats(tensor: Tensor) -> Floats:
    return np.asarray(tensor.double().cpu().numpy())


def _concatenated(rows: Sequence[Embeddings]) -> Embeddings:
    tags = [tags for _, tags in rows if tags is not None]
    return np.concatenate([vectors for vectors, _ in rows]), np.concatenate(tags) if tags else None
