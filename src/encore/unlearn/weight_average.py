"""The mean of a run's last weights, which an adaptive run ends with.

At the lowest rate weights still wander about a minimum, and with them the loss of held-out music; their mean lies
nearer to it (Polyak and Juditsky, doi 10.1137/0330046; stochastic weight averaging, arXiv 1803.05407).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

MEMORY = 20  # steps that the mean goes back: a longer one still holds what has healed since


def copied_weights(module: nn.Module) -> dict[str, Tensor]:
    """A module's state as it is now, by name."""
    return {name: weight.detach().clone().contiguous() for name, weight in module.state_dict().items()}


class WeightAverage:
    """The mean of a module's weights after its last steps, some `MEMORY` of them.

    `weights` has it by name, `steps` how many steps it is of; both are part of a checkpoint.

    Args:
        module: whose weights are averaged.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.weights: dict[str, Tensor] = {}
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights as they are into the mean."""
        self.steps += 1
        for name, weight in self.module.state_dict().items():
            if name in self.weights and weight.is_floating_point():
                self.weights[name].lerp_(weight, max(1 / self.steps, 1 / MEMORY))
            else:
                self.weights[name] = weight.detach().clone().contiguous()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The mean in place of the weights, where there is one."""
        if not self.steps:
            yield
            return
        last = copied_weights(self.module)
        self.module.load_state_dict(self.weights)
        try:
            yield
        finally:
            self.module.load_state_dict(last)
