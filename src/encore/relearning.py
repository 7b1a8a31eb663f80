"""Training a model on clips again: what the relearning metrics measure, and what methods defend against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from encore.api import Backend, Batch, Clip

WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0


def relearn(backend: Backend, batches: Sequence[Sequence[Clip]], *, lr: float, steps: int) -> Iterator[Tensor]:
    """Trains a model in place with AdamW, without dropout, all clips in each step.

    Args:
        backend: the model; what requires no gradient stays as it is.
        batches: the clips, as many at a time as fit one pass. How they are split changes nothing but memory.
        lr: learning rate.
        steps: number of steps.

    Yields:
        After each step: the losses [N] of the clips before it.
    """
    backend.module.eval()
    weights = [weight for weight in backend.module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=WEIGHT_DECAY)
    stacked = [Batch.of(clips, backend.device) for clips in batches]
    count = sum(map(len, batches))
    for _ in range(steps):
        optimizer.zero_grad()
        losses = []
        with torch.enable_grad():
            for batch in stacked:
                own = backend.losses(batch)
                (own.sum() / count).backward()
                losses.append(own.detach())
        torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        optimizer.step()
        yield torch.cat(losses)
    optimizer.zero_grad()
