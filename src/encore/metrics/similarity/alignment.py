"""Search for a passage of one code sequence in another, over all alignments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

MONOTONE = 0.5  # share of one code above which a passage is silence or a held note, and is ignored


@dataclass(frozen=True)
class Passage:
    """A matching passage.

    Args:
        share: share of its frames whose codes are equal.
        generated: first frame in the generation.
        track: first frame in the track.
    """

    share: float
    generated: int = 0
    track: int = 0


def best_passage(generated: ArrayLike, track: ArrayLike, frames: int, least: float = 0.0) -> Passage:
    """The passage with the largest share of equal codes, over all alignments.

    Args:
        generated: codes of one codebook, [T].
        track: codes of the same codebook, [T'].
        frames: length of the passage; there is none in shorter sequences.
        least: minimum share; a higher one is faster.

    Returns:
        The first of the best passages, of share 0 if none reaches `least`. Passages of the track with one code in more
        than half of their frames are ignored.
    """
    first, second = np.asarray(generated), np.asarray(track)
    if min(len(first), len(second)) < frames:
        return Passage(0.0)
    rows, columns = np.nonzero(first[:, None] == second[None])
    diagonals = columns - rows + len(first)  # alignment: frame of the track - frame of the generation
    enough = max(int(np.ceil(least * frames - 1e-9)), 1)
    likely = np.flatnonzero(np.bincount(diagonals) >= enough)
    if not len(likely):
        return Passage(0.0)
    best, varied = Passage(0.0), ~_monotone(second, frames)
    for diagonal in likely:
        shift = int(diagonal) - len(first)
        begin, end = max(0, -shift), min(len(first), len(second) - shift)  # overlapping frames of the generation
        if end - begin < frames:
            continue
        equal = np.zeros(end - begin + 1, dtype=np.int64)
        equal[1:] = np.cumsum(first[begin:end] == second[begin + shift : end + shift])
        right = (equal[frames:] - equal[:-frames]) * varied[begin + shift : end + shift - frames + 1]
        at = int(right.argmax())
        if right[at] >= enough and right[at] / frames > best.share:
            best = Passage(float(right[at] / frames), begin + at, begin + at + shift)
    return best


def _monotone(track: NDArray[np.int64], frames: int) -> NDArray[np.bool_]:
    """Whether one code makes up more than half of each passage, [T' - frames + 1]."""
    _codes, indices = np.unique(track, return_inverse=True)
    most = np.zeros(len(track) - frames + 1, dtype=np.int64)
    for code in np.flatnonzero(np.bincount(indices) > MONOTONE * frames):
        total = np.concatenate([[0], np.cumsum(indices == code)])
        most = np.maximum(most, total[frames:] - total[:-frames])
    return np.asarray(most > MONOTONE * frames)
