"""The mean gradient of a backend's loss over clips, a micro-batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from encore import distributed
from encore.api import Backend, Batch, Clip
from encore.curvature.fisher_stream import evaluating


def mean_gradient(
    backend: Backend, clips: Sequence[Clip], *, micro_batch_size: int = 8
) -> tuple[dict[str, Tensor], float]:
    """g = (1/n) Σ_n g_n and the mean loss, of each clip's mean NLL a token; in evaluation mode, `.grad` untouched.

    Of several processes each computes the gradients of some clips.

    Returns:
        trainable parameter name -> gradient of its shape (0 where the loss does not depend on it); nats/token.
    """
    weights = {name: weight for name, weight in backend.module.named_parameters() if weight.requires_grad}
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    total = 0.0
    with evaluating(backend.module), torch.enable_grad():
        for clip_batch in filter(None, distributed.batches(clips, micro_batch_size)):
            loss = backend.losses(Batch.of(clip_batch, backend.device)).sum()
            total += loss.item()
            for value, part in zip(
                sums.values(), torch.autograd.grad(loss, list(weights.values()), allow_unused=True), strict=True
            ):
                if part is not None:
                    value += part
    distributed.add(sums.values())
    (total,) = distributed.totals([total])
    return {name: value / len(clips) for name, value in sums.items()}, total / len(clips)
