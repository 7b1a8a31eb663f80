"""The average of a run's last weights, which an adaptive run ends with.

Even at the lowest rate the weights fluctuate around a minimum, and the loss of held-out music with them; their average
is nearer to it (Polyak and Juditsky, doi 10.1137/0330046; stochastic weight averaging, arXiv 1803.05407).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from encore.unlearn import bf16_weights
from encore.unlearn.sharding import is_split

MEMORY = 20  # steps averaged; a longer average would include weights from before retain recovered


def copied_weights(module: nn.Module, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """A copy of a module's state, by name, on the CPU, to save memory of a GPU; parts of split tensors stay there.

    Of weights that are trained in bfloat16 it has the float32 values.

    Args:
        module: its device may be any.
        names: the entries to copy; None: all.
    """
    state = module.state_dict(keep_vars=True)
    return {name: _copied(state[name]) for name in (state if names is None else names)}


def _copied(tensor: Tensor) -> Tensor:
    tensor = bf16_weights.whole(tensor)
    return tensor.clone() if is_split(tensor) else tensor.to("cpu", copy=True).contiguous()


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], names: Collection[str] | None = None) -> None:
    """Restore what `copied_weights` copied; other entries stay as they are.

    Raises:
        RuntimeError: the weights are not those that were asked for.
    """
    if names is not None and weights.keys() != set(names):
        raise RuntimeError(f"{len(weights)} weights given, {len(names)} expected")
    module.load_state_dict(dict(weights), strict=names is None)
    for name, weight in module.named_parameters():
        if name in weights:
            bf16_weights.assign(weight, weights[name])


class WeightAverage:
    """Running mean of a module's weights over about the last `MEMORY` steps.

    Args:
        module: the averaged module.
        names: the entries of its state that are averaged; None: all.

    Attributes:
        weights: the mean, by name, on the CPU; saved in checkpoints.
        steps: number of steps averaged; saved in checkpoints.
    """

    def __init__(self, module: nn.Module, names: Collection[str] | None = None) -> None:
        self.module, self.names = module, names
        self.weights: dict[str, Tensor] = {}
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the mean."""
        self.steps += 1
        state = self.module.state_dict(keep_vars=True)
        for name in state if self.names is None else self.names:
            weight = bf16_weights.whole(state[name])
            if name in self.weights and weight.is_floating_point():
                weight = weight if is_split(weight) else weight.cpu()
                self.weights[name].lerp_(weight, max(1 / self.steps, 1 / MEMORY))
            else:
                self.weights[name] = _copied(weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the weights by the mean, if there is one, inside the context."""
        if not self.steps:
            yield
            return
        last = copied_weights(self.module, self.names)
        load_weights(self.module, self.weights, self.names)
        try:
            yield
        finally:
            load_weights(self.module, last, self.names)
