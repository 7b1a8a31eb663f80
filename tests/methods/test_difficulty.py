"""A clip's difficulty from the entropy of its codes, against fits with one clip left out at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from encore.api import Clip
from encore.losses import code_entropy
from encore.methods.difficulty import difficulty


def clips(*distinct: int) -> list[Clip]:
    """Clips of 2 codebooks and 64 frames that use so many codes each, all equally often."""
    return [Clip(str(i), "", torch.arange(64).repeat(2, 1) % count) for i, count in enumerate(distinct)]


def test_entropy_is_that_of_how_often_codes_occur() -> None:
    assert [code_entropy(clip.codes) for clip in clips(1, 4, 64)] == pytest.approx(
        [0, math.log(4), math.log(64)], abs=1e-6
    )


@pytest.mark.parametrize("noise", [0.05, 0.4])
def test_the_slope_is_shrunk_by_what_it_predicts_of_clips_left_out(noise: float) -> None:
    rng = np.random.default_rng(1)
    new, own = clips(2, 4, 8, 16, 32, 64), clips(2, 8, 64)
    x = np.log([2, 4, 8, 16, 32, 64])
    nll = 1 + 0.5 * x + noise * rng.standard_normal(6)
    lines, means = [], []
    for i in range(6):
        rest = np.arange(6) != i
        slope, start = np.polyfit(x[rest], nll[rest], 1)
        lines.append((nll[i] - slope * x[i] - start) ** 2)
        means.append((nll[i] - nll[rest].mean()) ** 2)
    skill = 1 - sum(lines) / sum(means)
    assert 0 < skill < 1
    wanted = nll.mean() + skill * np.polyfit(x, nll, 1)[0] * (np.log([2, 8, 64]) - x.mean())
    found = difficulty(own, new, torch.tensor(nll))
    assert (found * nll.mean()).tolist() == pytest.approx(wanted.tolist(), rel=1e-5)


def test_no_share_but_one_where_entropy_tells_nothing() -> None:
    own = clips(2, 64)
    assert difficulty(own, clips(2, 4, 8, 16, 32, 64), torch.tensor([3.0, 1, 3, 1, 3, 1])).tolist() == [1, 1]
    assert difficulty(own, clips(2, 64), torch.tensor([1.0, 3.0])).tolist() == [1, 1], "two clips show no error"
    assert difficulty(own, clips(8, 8, 8), torch.tensor([1.0, 2.0, 3.0])).tolist() == [1, 1], "all as varied"


def test_no_clip_is_taken_beyond_the_range_of_new_ones() -> None:
    """A silent track would else have no level at all."""
    new, nll = clips(16, 32, 48, 64), torch.log(torch.tensor([16.0, 32, 48, 64])) - 2
    silent, plain = difficulty(clips(1, 16), new, nll)
    assert silent == plain
    assert 0 < plain < 1


def test_no_predicted_nll_is_beyond_those_of_held_out_music() -> None:
    """A line through a convex relation falls below 0 at its lower end."""
    new, nll = clips(1, 1, 2, 3, 32, 36), torch.tensor([0.03, 0.03, 0.2, 0.2, 4.4, 4.6])
    line = np.polyfit([code_entropy(clip.codes) for clip in new], nll.numpy(), 1)
    assert np.polyval(line, 0.0) < 0
    shares = difficulty(clips(1, 36), new, nll) * nll.mean()
    assert float(shares[0]) == pytest.approx(0.03, rel=1e-4)
    assert float(shares[1]) <= 4.6
