"""What training on a clip again would do to a model's weights, so that a loss can be taken there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from encore.api import Backend, Batch


class RelearningAttack:
    """Trains a copy of a model on clips, as somebody would who wants them back.

    Args:
        backend: the model; its copy is kept, and takes over its weights before every attack.
    """

    def __init__(self, backend: Backend) -> None:
        self._copy = backend.clone()
        self._copy.module.eval()

    def __call__(self, backend: Backend, batch: Batch, *, steps: int, lr: float) -> Iterator[dict[str, Tensor]]:
        """By how much each AdamW step on a batch has changed each trainable weight, by name, since the attack began.

        The model itself stays as it is.

        Args:
            backend: the model attacked.
            batch: clips trained on, all of them in each step.
            steps: number of steps.
            lr: learning rate of AdamW.
        """
        copy, module = self._copy.module, backend.module
        copy.load_state_dict(module.state_dict())
        own = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        weights = {name: copy.get_parameter(name).requires_grad_() for name in own}
        optimizer = torch.optim.AdamW(weights.values(), lr=lr)
        for _ in range(steps):
            with torch.enable_grad():
                self._copy.losses(batch).mean().backward()
            nn.utils.clip_grad_norm_(weights.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            yield {name: weight.detach() - own[name].detach() for name, weight in weights.items()}


@contextmanager
def moved(module: nn.Module, by: Mapping[str, Tensor]) -> Iterator[None]:
    """A module with its weights moved by constants: what is computed inside has the weights' own gradient.

    Args:
        module: stands as before once the context is left; tied weights stay tied.
        by: what to add to each parameter, by name, in its shape.
    """
    there = {id(module.get_parameter(name)): module.get_parameter(name) + shift for name, shift in by.items()}
    places = [
        (part, name, weight)
        for part in module.modules()
        for name, weight in part._parameters.items()
        if id(weight) in there
    ]
    for part, name, weight in places:
        part._parameters[name] = there[id(weight)]  # type: ignore[assignment]
    try:
        yield
    finally:
        for part, name, weight in places:
            part._parameters[name] = weight
