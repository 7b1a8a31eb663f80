"""Similarity of sequences: edit distance and BLEU."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ORDER = 4  # longest n-gram of BLEU


def edit_similarities(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """1 - Levenshtein distance / length of the longer sequence, for all pairs of P and R sequences, [P, R].

    The similarity of two empty sequences is 0.
    """
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    longer = np.maximum.outer([len(sequence) for sequence in first], [len(sequence) for sequence in second])
    distances = cdist(first, second, scorer=Levenshtein.distance)
    return np.where(longer > 0, 1 - distances / np.maximum(longer, 1), 0.0)


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
