"""What must be the same after a check as before: weights, modes, and the random numbers everybody shares."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from encore.api import Backend

TOLERANCE = 1e-4  # of figures that float32 gives in another order of sums


def close(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether two tensors of one shape differ by rounding at most: |a - b| ≤ tolerance (1 + |b|)."""
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors of one shape."""
    return float((a - b).abs().max()) if a.numel() else 0.0


class Globals:
    """The state of the random generators that a process shares: torch's, numpy's, Python's.

    Python's is set and restored but not watched: transformers draws from it in every forward pass, for a layer drop
    that is off, and nothing comes of it.
    """

    def __init__(self) -> None:
        self.torch = torch.get_rng_state()
        self.numpy: Any = np.random.get_state()  # noqa: NPY002  (the global one is what is looked at)
        self.python = random.getstate()

    def restore(self) -> None:
        torch.set_rng_state(self.torch)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)

    def moved(self) -> str:
        """Which of them is not where it was, or nothing."""
        now = Globals()
        names = []
        if not torch.equal(now.torch, self.torch):
            names.append("torch's")
        if any(not np.array_equal(a, b) for a, b in zip(now.numpy, self.numpy, strict=True)):
            names.append("numpy's")
        return " and ".join(names)


def disturb(salt: int) -> None:
    """Set the shared generators to a state that depends on `salt` alone."""
    torch.manual_seed(salt)
    np.random.seed(salt)  # noqa: NPY002
    random.seed(salt)


@contextmanager
def undisturbed(*backends: Backend) -> Iterator[None]:
    """Weights, modes, gradients and the shared generators are afterwards what they were before."""
    shared, grad = Globals(), torch.is_grad_enabled()
    parts = [part for backend in backends for part in (backend.module, *backend.frozen().values())]
    kept = [_Kept(part) for part in parts]
    try:
        yield
    finally:
        shared.restore()
        torch.set_grad_enabled(grad)
        for part in kept:
            part.restore()


class _Kept:
    """A copy of a module's state."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self.modes = [(part, part.training) for part in module.modules()]
        self.trainable = [(weight, weight.requires_grad) for weight in module.parameters()]

    @torch.no_grad()
    def restore(self) -> None:
        for name, value in self.module.state_dict().items():
            before = self.values.get(name)
            if before is not None and before.shape == value.shape and not torch.equal(before, value):
                value.copy_(before)
        for part, mode in self.modes:
            part.training = mode
        for weight, wanted in self.trainable:
            weight.requires_grad_(wanted)
            weight.grad = None
