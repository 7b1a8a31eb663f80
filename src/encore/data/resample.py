"""Channels and sample rate of decoded blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encore.errors import InputError

Samples = NDArray[np.float32]


def mix(block: Samples, channels: int, name: str = "audio") -> Samples:
    """[S, C] -> [S, channels]. To one: the mean. One to many: repeated. Many to two: the first two, each with the
    rest added at -3 dB, rescaled so that nothing overshoots. Any other change is refused.

    Raises:
        InputError: no rule for these channels.
    """
    have = block.shape[1]
    if have == channels:
        return block
    if channels == 1:
        return block.mean(axis=1, dtype=np.float32, keepdims=True)
    if have == 1:
        return np.repeat(block, channels, axis=1)
    if channels == 2:
        share = np.float32(0.5**0.5)
        rest = block[:, 2:].sum(axis=1, dtype=np.float32, keepdims=True)
        mixed: Samples = (block[:, :2] + share * rest) / (1 + share * np.float32(have - 2))
        return mixed
    raise InputError(f"{name} has {have} channels, and the model wants {channels}", "mix it down first")


def resample(blocks: Iterable[Samples], rate: int, wanted: int, channels: int, expected: int = 0) -> Samples:
    """Blocks [s, C] at `rate` -> [C, S] at `wanted` Hz, as a stream: only the result is held.

    Args:
        expected: frames that the blocks will probably have in all, so that the result is allocated once.
    """
    if rate == wanted:
        return _join(blocks, channels, expected)
    import soxr

    resampler: Any = soxr.ResampleStream(rate, wanted, channels, dtype="float32", quality="HQ")

    def resampled() -> Iterator[Samples]:
        for block in blocks:
            yield resampler.resample_chunk(np.ascontiguousarray(block)).reshape(-1, channels)
        yield resampler.resample_chunk(np.zeros((0, channels), np.float32), last=True).reshape(-1, channels)

    return _join(resampled(), channels, round(expected * wanted / rate))


def _join(blocks: Iterable[Samples], channels: int, expected: int) -> Samples:
    """[s, C] blocks -> [C, S], in memory that grows by half where `expected` was too little."""
    joined = np.empty((channels, expected), np.float32)
    have = 0
    for block in blocks:
        need = have + len(block)
        if need > joined.shape[1]:
            larger = np.empty((channels, max(need, joined.shape[1] * 3 // 2)), np.float32)
            larger[:, :have] = joined[:, :have]
            joined = larger
        joined[:, have:need] = block.T
        have = need
    return np.ascontiguousarray(joined[:, :have])
