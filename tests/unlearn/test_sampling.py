"""The order in which the loop draws clips."""

from __future__ import annotations

import torch

from encore.unlearn.sampling import ShuffledSampler


def test_draw_passes_over_everything_before_it_repeats() -> None:
    draw = ShuffledSampler(torch.Generator().manual_seed(0))
    seen = [i for _ in range(4) for i in draw.take(range(8), 2)]
    assert sorted(seen) == list(range(8))
    assert draw.take([1, 2], 5) == [1, 2]
    assert set(draw.take([3, 4, 5], 2)) <= {3, 4, 5}
