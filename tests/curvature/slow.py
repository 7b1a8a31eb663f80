"""The slow answer: one forward and one backward pass a sample, by plain autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


def per_sample(module: nn.Module, losses: Callable[[], Tensor]) -> dict[str, Tensor]:
    """g_n of every trainable parameter, [N, *shape]; zeros where a loss does not depend on it."""
    weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    kept = [weight.grad for weight in weights.values()]
    rows = []
    for n in range(len(losses())):
        for weight in weights.values():
            weight.grad = None
        losses()[n].backward()  # not torch.autograd.grad, which reentrant checkpointing refuses
        rows.append([torch.zeros_like(w) if w.grad is None else w.grad for w in weights.values()])
    for weight, grad in zip(weights.values(), kept, strict=True):
        weight.grad = grad
    return {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(weights)}


def fisher(grads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: grad.square().sum(0) for name, grad in grads.items()}


def sq_norms(grads: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([grad.flatten(1).square().sum(1) for grad in grads.values()]).sum(0)


def dots(grads: Mapping[str, Tensor], directions: Sequence[Mapping[str, Tensor]]) -> Tensor:
    return torch.stack(
        [sum((grads[name] * v).flatten(1).sum(1) for name, v in direction.items()) for direction in directions], 1
    )


def weighted_sum(grads: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    return {name: torch.tensordot(weights, grad, 1) for name, grad in grads.items()}
