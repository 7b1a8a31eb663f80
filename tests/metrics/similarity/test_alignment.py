from __future__ import annotations

import numpy as np
import pytest

from encore.metrics.similarity.alignment import MONOTONE, Passage, best_passage


def slowly(generated, track, frames):
    """Every passage of one against every passage of the other."""
    best = 0.0
    for i in range(len(generated) - frames + 1):
        for j in range(len(track) - frames + 1):
            piece = track[j : j + frames]
            if np.unique(piece, return_counts=True)[1].max() <= MONOTONE * frames:
                best = max(best, float((generated[i : i + frames] == piece).mean()))
    return best


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("codes", [2, 3, 8])
def test_the_best_of_all_alignments(seed, codes):
    rng = np.random.default_rng(seed)
    one, two = rng.integers(codes, size=rng.integers(5, 30)), rng.integers(codes, size=rng.integers(5, 30))
    found = best_passage(one, two, 6)
    assert found.share == pytest.approx(slowly(one, two, 6))
    if found.share:
        pieces = one[found.generated : found.generated + 6], two[found.track : found.track + 6]
        assert (pieces[0] == pieces[1]).mean() == pytest.approx(found.share)
        assert best_passage(one, two, 6, found.share) == found
        assert best_passage(one, two, 6, found.share + 0.01) == Passage(0.0)


def test_silence_and_short_clips_are_no_passage():
    silence, melody = np.zeros(40, dtype=int), np.arange(40)
    assert best_passage(silence, silence, 10).share == 0
    assert best_passage(melody[:9], melody, 10).share == 0
    assert best_passage(melody[20:], melody, 10) == Passage(1.0, 0, 20)
    assert best_passage(melody, melody[20:], 10) == Passage(1.0, 20, 0)
