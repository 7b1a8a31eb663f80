"""Weights of a model after relearning clips, so that a loss can be computed there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from encore import distributed
from encore.api import Backend, Clip
from encore.errors import UsageError
from encore.relearning import relearn


class RelearningAttack:
    """Trains a copy of a model on clips, as an attacker would to restore them.

    Args:
        backend: the model; it is copied once, and its trained weights before every attack, in float32. Weights that are
            not trained (with an adapter, all but the adapter's) are shared with the copy.
        lr: learning rate of AdamW.
    """

    def __init__(self, backend: Backend, *, lr: float) -> None:
        self.lr = lr
        self._copy = _sharing_copy(backend)

    def __call__(
        self, backend: Backend, clips: Sequence[Clip], *, steps: int, size: int
    ) -> Iterator[dict[str, Tensor]]:
        """The trainable weights, by name, after each AdamW step on clips.

        They belong to the copy, and change with the next step; the model itself is not changed.

        Args:
            backend: the model attacked.
            clips: trained on, all of them in each step.
            steps: number of steps.
            size: clips per pass; affects only memory use.

        Raises:
            UsageError: the model's weights are split over several processes.
        """
        if distributed.in_lockstep():
            raise UsageError(
                "relearning attacks need whole weights, and --fsdp splits them",
                "use -o attack_share=0, or leave --fsdp out",
            )
        copy, module = self._copy.module, backend.module
        shared = {name for name, weight in module.named_parameters() if not weight.requires_grad}
        state = {name: value for name, value in module.state_dict().items() if name not in shared}
        copy.load_state_dict(state, strict=not shared)
        names = [name for name, weight in module.named_parameters() if weight.requires_grad]
        weights = {name: copy.get_parameter(name).requires_grad_() for name in names}
        batches = [clips[start : start + size] for start in range(0, len(clips), size)]
        for _ in relearn(self._copy, batches, lr=self.lr, steps=steps):
            yield weights


@contextmanager
def moved(module: nn.Module, to: Mapping[str, Tensor]) -> Iterator[None]:
    """A module at other weights, with gradients that go to its original weights.

    Args:
        module: restored after the context; tied weights stay tied.
        to: the weights, constants, by name of the parameter.
    """
    there: dict[int, Tensor] = {}
    for name, target in to.items():
        own = module.get_parameter(name)
        there[id(own)] = own + (target.detach() - own.detach())
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


def _sharing_copy(backend: Backend) -> Backend:
    """A copy of a model that shares the weights that are not trained, which are never copied."""
    fixed = {name: weight for name, weight in backend.module.named_parameters() if not weight.requires_grad}
    values = {name: weight.data for name, weight in fixed.items()}
    try:
        for weight in fixed.values():
            weight.data = weight.data.new_empty(0)
        copy = backend.clone()
    finally:
        for name, weight in fixed.items():
            weight.data = values[name]
    for name, weight in copy.module.named_parameters():
        if name in values:
            weight.requires_grad_(False).data = values[name]
        elif weight.dtype == torch.bfloat16:  # most steps of an attack are smaller than what bfloat16 can show
            weight.data = weight.data.float()
    return copy
