"""The size of a model's weights and the width of its layers, which default learning rates follow from."""

from __future__ import annotations

import statistics

from torch import Tensor, nn


def median_weight_rms(module: nn.Module) -> float:
    """The size of a model's weights, which learning rates are relative to: the median over linear layers of their RMS.

    The layers are the model's own, and not an adapter's, of which half are 0 at first. Queries, keys and values of an
    attention that keeps them in one weight, as `nn.MultiheadAttention` does, count as three layers.
    """
    matrices = _linear(module) or [weight for weight in module.parameters() if weight.ndim > 1]  # some models have none
    return statistics.median(float(w.detach().float().pow(2).mean().sqrt()) for w in matrices)


def median_layer_width(module: nn.Module) -> float:
    """The median number of inputs of a model's own linear layers; 1 without any."""
    return statistics.median([weight.shape[1] for weight in _linear(module)] or [1])


def _linear(module: nn.Module) -> list[Tensor]:
    """The weights of a model's own linear layers."""
    parts = [part for name, part in module.named_modules() if ".lora_" not in name]
    linear = [part.weight for part in parts if isinstance(part, nn.Linear)]
    fused = [part.in_proj_weight for part in parts if getattr(part, "in_proj_weight", None) is not None]
    return linear + [third for weight in fused for third in weight.chunk(3)]
