"""Relearning: training a model on clips again, for metrics, and for methods that defend against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from encore.adamw import adamw
from encore.api import Backend, Batch, Clip

WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0


def relearn(backend: Backend, batches: Sequence[Sequence[Clip]], *, lr: float, steps: int) -> Iterator[Tensor]:
    """Train a model in place with AdamW, without dropout, on all clips in each step.

    Args:
        backend: the model; weights without gradient are not changed.
        batches: the clips, split into passes, which only affects memory use.
        lr: learning rate.
        steps: number of steps.

    Yields:
        After each step: the losses [N] of the clips before it.
    """
    backend.module.eval()
    weights = [weight for weight in backend.module.parameters() if weight.requires_grad]
    optimizer = adamw(weights, lr=lr, weight_decay=WEIGHT_DECAY)
    stacked = [Batch.of(clips, backend.device) for clips in batches]
    count = sum(map(len, batches))
    for _ in range(steps):
        optimizer.zero_grad()
        losses = []
        with torch.enable_grad():
            for batch in stacked:
                batch_losses = backend.losses(batch)
                (batch_losses.sum() / count).backward()
                losses.append(batch_losses.detach())
        torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        optimizer.step()
        yield torch.cat(losses)
    optimizer.zero_grad()
