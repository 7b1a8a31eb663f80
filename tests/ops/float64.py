"""What the tests of the ops, on any device, measure by: seeded operands, and per-sample gradients in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def gradients(inputs: Tensor, grads: Tensor) -> Tensor:
    """G_n, [N, O, I], in float64."""
    return torch.einsum("nto,nti->noi", grads.double(), inputs.double())


def error(found: Tensor, reference: Tensor) -> float:
    """‖Δ‖ / ‖reference‖; 0 where both are empty or zero."""
    return float((found.double() - reference).norm() / reference.norm().clamp_min(1e-300))
