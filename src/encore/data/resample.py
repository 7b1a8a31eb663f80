"""Mix and resample decoded blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encore.errors import InputError

Samples = NDArray[np.float32]


def mix(block: Samples, channels: int, name: str = "audio") -> Samples:
    """Change the number of channels.

    To one: the mean. From one: repeated. To two: the first two, with the rest added to each at -3 dB, scaled so that
    nothing overshoots.

    Args:
        block: [S, C].
        channels: of the result.
        name: of the file, for messages.

    Returns:
        [S, channels].

    Raises:
        InputError: any other change.
    """
    count = block.shape[1]
    if count == channels:
        return block
    if channels == 1:
        return block.mean(axis=1, dtype=np.float32, keepdims=True)
    if count == 1:
        return np.repeat(block, channels, axis=1)
    if channels == 2:
        share = np.float32(0.5**0.5)
        rest = block[:, 2:].sum(axis=1, dtype=np.float32, keepdims=True)
        mixed: Samples = (block[:, :2] + share * rest) / (1 + share * np.float32(count - 2))
        return mixed
    raise InputError(f"{name} has {count} channels, and the model needs {channels}", "mix it down first")


def resample(blocks: Iterable[Samples], rate: int, target: int, channels: int, expected: int = 0) -> Samples:
    """Resample a stream; only the result is in memory.

    Args:
        blocks: [s, C] each.
        rate: of the blocks, Hz.
        target: rate of the result, Hz.
        channels: C.
        expected: likely number of frames in all blocks, to allocate the result once.

    Returns:
        [C, S].
    """
    if rate == target:
        return _join(blocks, channels, expected)
    import soxr

    resampler: Any = soxr.ResampleStream(rate, target, channels, dtype="float32", quality="HQ")

    def resampled() -> Iterator[Samples]:
        for block in blocks:
            yield resampler.resample_chunk(np.ascontiguousarray(block)).reshape(-1, channels)
        yield resampler.resample_chunk(np.zeros((0, channels), np.float32), last=True).reshape(-1, channels)

    return _join(resampled(), channels, round(expected * target / rate))


def _join(blocks: Iterable[Samples], channels: int, expected: int) -> Samples:
    """Join blocks [s, C] to [C, S]; the buffer grows by half where `expected` was too small."""
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
