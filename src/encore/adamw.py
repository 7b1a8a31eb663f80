"""AdamW, for training and for relearning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def adamw(
    weights: Sequence[Tensor], *, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """torch's AdamW, by its fused kernel where it can be: a quarter of the time on a CPU.

    The CPU kernel walks through memory, and is wrong where a weight and its gradient are laid out in different orders.
    """
    fused = all(weight.is_contiguous() for weight in weights)
    return torch.optim.AdamW(weights, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
