"""Against the textbook's recursion, and against BLEU written out."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encore.metrics.similarity.sequences import bleu, bleu_similarities, edit_similarities

SEQUENCES = st.lists(st.lists(st.integers(0, 3), max_size=9), min_size=1, max_size=4)


def levenshtein(one, two) -> int:
    @cache
    def distance(i, j):
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (one[i - 1] != two[j - 1]))

    return distance(len(one), len(two))


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, SEQUENCES)
def test_edit_distance_is_the_recursion(first, second):
    expected = [[1 - levenshtein(a, b) / max(len(a), len(b)) if a or b else 0.0 for b in second] for a in first]
    assert edit_similarities(first, second) == pytest.approx(np.array(expected).reshape(len(first), len(second)))


def test_edit_distance_of_kitten_and_sitting():
    words = [[ord(c) for c in word] for word in ("kitten", "sitting")]
    assert edit_similarities(words[:1], words[1:])[0, 0] == pytest.approx(1 - 3 / 7)


def test_many_pairs_are_compared_in_pieces():
    rng = np.random.default_rng(0)
    first, second = ([rng.integers(0, 4, rng.integers(1, 9)).tolist() for _ in range(n)] for n in (40, 30))
    found = edit_similarities(first, second)
    assert found.shape == (40, 30)
    assert found[39, 29] == pytest.approx(edit_similarities(first[39:], second[29:])[0, 0])


def bleu_written_out(candidate, reference) -> float:
    precisions = []
    for n in (1, 2, 3, 4):
        own = [tuple(candidate[i : i + n]) for i in range(len(candidate) - n + 1)]
        left = [tuple(reference[i : i + n]) for i in range(len(reference) - n + 1)]
        matched = 0
        for gram in own:
            if gram in left:
                left.remove(gram)  # clipped: each may be used once
                matched += 1
        precisions.append((matched, len(own)) if n == 1 else (matched + 1, len(own) + 1))
    if not precisions[0][0]:
        return 0.0
    product = math.prod(matched / total for matched, total in precisions) ** 0.25
    return product * min(1.0, math.exp(1 - len(reference) / len(candidate)))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_bleu_is_its_formula(candidate, reference):
    assert bleu(candidate, reference) == pytest.approx(bleu_written_out(candidate, reference))


def test_bleu_of_known_sentences():
    """Counted by hand: 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, 0 of 3 fours; one is added to all but the first."""
    words = {"the": 0, "cat": 1, "sat": 2, "lay": 3, "on": 4, "mat": 5}
    sentences = "the cat sat on the mat", "the cat lay on the mat"
    one, two = ([words[word] for word in sentence.split()] for sentence in sentences)
    assert bleu(one, two) == pytest.approx((5 / 6 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25)
    assert bleu(one, one) == 1.0
    assert bleu([7, 8], two) == bleu([], two) == 0.0
    assert bleu_similarities([one, two], [two]).tolist() == [[bleu(one, two)], [1.0]]
