"""Similarity of sequences: edit distance and BLEU."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ORDER = 4  # longest n-gram of BLEU
BATCH = 512  # pairs compared at once


def edit_similarities(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """1 - Levenshtein distance / length of the longer sequence, for all pairs of P and R sequences, [P, R].

    The similarity of two empty sequences is 0.
    """
    pairs = [(a, b) for a in first for b in second]
    similarities = [
        similarity
        for start in range(0, len(pairs), BATCH)
        for similarity in _similarities(pairs[start : start + BATCH]).tolist()
    ]
    return np.array(similarities, dtype=np.float64).reshape(len(first), len(second))


def _similarities(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> NDArray[np.float64]:
    """Wagner and Fischer's table (J. ACM 21, 1974), row by row, batched over pairs.

    Within a row, d_j = min over i ≤ j of (e_i + j - i), e the best of deletion and substitution: a running minimum.
    """
    longest = [max((len(pair[side]) for pair in pairs), default=0) for side in (0, 1)]
    first, second = (np.full((len(pairs), longest[side]), -1 - side) for side in (0, 1))  # paddings equal no code
    lengths = np.array([[len(pair[0]), len(pair[1])] for pair in pairs]).reshape(-1, 2)
    for row, (a, b) in enumerate(pairs):
        first[row, : len(a)], second[row, : len(b)] = a, b
    columns = np.arange(longest[1] + 1)
    table = np.broadcast_to(columns, (len(pairs), len(columns))).copy()  # distances of the empty prefix
    distance = table[np.arange(len(pairs)), lengths[:, 1]]
    for i in range(longest[0]):
        best = np.empty_like(table)
        best[:, 0] = i + 1
        best[:, 1:] = np.minimum(table[:, 1:] + 1, table[:, :-1] + (first[:, i, None] != second))
        table = np.minimum.accumulate(best - columns, axis=1) + columns
        ends = lengths[:, 0] == i + 1
        distance = np.where(ends, table[np.arange(len(pairs)), lengths[:, 1]], distance)
    longer = lengths.max(1)
    return np.where(longer > 0, 1 - distance / np.maximum(longer, 1), 0.0)


def bleu(candidate: Sequence[int], reference: Sequence[int]) -> float:
    """BLEU-4 of a sequence against one reference, orders above one smoothed by adding one.

    exp(min(0, 1 - r/c)) · (Π_n p_n)^(1/N), p_n clipped n-gram precision (Papineni et al., ACL 2002), p_n = (m_n + 1) /
    (l_n + 1) for n > 1 (Lin and Och, COLING 2004). 0 if no element is shared or a sequence is empty.
    """
    logs = 0.0
    for order in range(1, ORDER + 1):
        shared = _ngrams(candidate, order) & _ngrams(reference, order)
        matched, total = shared.total(), max(len(candidate) - order + 1, 0)
        if order > 1:
            matched, total = matched + 1, total + 1
        if not matched:
            return 0.0
        logs += math.log(matched / total) / ORDER
    return math.exp(min(0.0, 1 - len(reference) / len(candidate)) + logs)


def bleu_similarities(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """BLEU of P candidates against R references, [P, R]."""
    return np.array([[bleu(a, b) for b in second] for a in first]).reshape(len(first), len(second))


def _ngrams(sequence: Sequence[int], order: int) -> Counter[tuple[int, ...]]:
    return Counter(zip(*(sequence[start:] for start in range(order)), strict=False))
