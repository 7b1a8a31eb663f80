"""The average of a run's last weights, which an adaptive run ends with.

Even at the lowest rate the weights fluctuate around a minimum, and the loss of held-out music with them; their average
is nearer to it (Polyak and Juditsky, doi 10.1137/0330046; stochastic weight averaging, arXiv 1803.05407).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

MEMORY = 20  # steps averaged; a longer average would include weights from before retain recovered


def copied_weights(module: nn.Module) -> dict[str, Tensor]:
    """A module's state as it is now, by name."""
    return {name: weight.detach().clone().contiguous() for name, weight in module.state_dict().items()}


class WeightAverage:
    """Running mean of a module's weights over about the last `MEMORY` steps.

    Args:
        module: the averaged module.

    Attributes:
        weights: the mean, by name; saved in checkpoints.
        steps: number of steps averaged; saved in checkpoints.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.weights: dict[str, Tensor] = {}
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the mean."""
        self.steps += 1
        for name, weight in self.module.state_dict().items():
            if name in self.weights and weight.is_floating_point():
                self.weights[name].lerp_(weight, max(1 / self.steps, 1 / MEMORY))
            else:
                self.weights[name] = weight.detach().clone().contiguous()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the weights by the mean, if there is one, inside the context."""
        if not self.steps:
            yield
            return
        last = copied_weights(self.module)
        self.module.load_state_dict(self.weights)
        try:
            yield
        finally:
            self.module.load_state_dict(last)
