"""Where a sequence of codes holds a passage of another, at any alignment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

MONOTONE = 0.5  # share of one code above which a passage is silence or a held note, which is no evidence


@dataclass(frozen=True)
class Passage:
    """The best match of so many frames.

    Args:
        share: of its frames whose codes are equal.
        generated: frame of the generation at which it begins.
        track: frame of the track at which it begins.
    """

    share: float
    generated: int = 0
    track: int = 0


def best_passage(generated: ArrayLike, track: ArrayLike, frames: int, least: float = 0.0) -> Passage:
    """The passage of one length in which the largest share of codes agrees, over all alignments.

    Args:
        generated: codes of one codebook, [T].
        track: codes of the same codebook, [T'].
        frames: length of a passage; sequences that are shorter hold none.
        least: share below which a passage need not be found; a higher one is faster.

    Returns:
        The first of the best passages; of share 0 where none reaches `least`. Passages of the track that are one code
        for more than half of their frames do not count.
    """
    one, two = np.asarray(generated), np.asarray(track)
    if min(len(one), len(two)) < frames:
        return Passage(0.0)
    rows, columns = np.nonzero(one[:, None] == two[None])
    diagonals = columns - rows + len(one)  # the alignment: the track's frame less the generation's
    enough = max(int(np.ceil(least * frames - 1e-9)), 1)
    counts = np.bincount(diagonals, minlength=1)
    varied = ~_monotone(two, frames)
    best = Passage(0.0)
    for diagonal in np.flatnonzero(counts >= enough):
        shift = int(diagonal) - len(one)
        begin, end = max(0, -shift), min(len(one), len(two) - shift)  # frames of the generation that have a partner
        if end - begin < frames:
            continue
        equal = np.zeros(end - begin + 1, dtype=np.int64)
        equal[1:] = np.cumsum(one[begin:end] == two[begin + shift : end + shift])
        right = (equal[frames:] - equal[:-frames]) * varied[begin + shift : end + shift - frames + 1]
        at = int(right.argmax())
        if right[at] >= enough and right[at] / frames > best.share:
            best = Passage(float(right[at] / frames), begin + at, begin + at + shift)
    return best


def _monotone(track: NDArray[np.int64], frames: int) -> NDArray[np.bool_]:
    """Of each passage [T' - frames + 1], whether one code makes up more than half of it."""
    _codes, places = np.unique(track, return_inverse=True)
    most = np.zeros(len(track) - frames + 1, dtype=np.int64)
    for code in np.flatnonzero(np.bincount(places) > MONOTONE * frames):
        total = np.concatenate([[0], np.cumsum(places == code)])
        most = np.maximum(most, total[frames:] - total[:-frames])
    return np.asarray(most > MONOTONE * frames)
