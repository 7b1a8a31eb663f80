"""Weights of a layer that a method leaves as they are: entries that its mask is False for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def mask_gradients(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero the gradients of masked weights, so that they gather no momentum and don't count in the clipped norm.

    Args:
        module: of the run.
        masks: parameter name -> bool of its shape; see `encore.api.Session`.
    """
    for name, mask in masks.items():
        gradient = module.get_parameter(name).grad
        if gradient is not None:
            gradient.masked_fill_(~mask, 0)


@torch.no_grad()
def restore_masked(module: nn.Module, masks: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Undo weight decay on masked weights.

    Args:
        module: of the run.
        masks: as in `mask_gradients`.
        values: has those of masked weights, which never change.
    """
    for name, mask in masks.items():
        weight = module.get_parameter(name)
        weight.copy_(torch.where(mask, weight, values[name].to(weight.device)))
