"""Activation checkpointing (Chen et al., arXiv 1604.06174): blocks keep their inputs, and are run again in backward."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from encore.api import Backend, Method
from encore.errors import UsageError

Setting = Literal["auto", "on", "off"]
FULL = 0.5  # share of the device's memory that weights, gradients and moments may take before `auto` is on


@contextmanager
def checkpointed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the context the blocks are checkpointed; so are copies made of them, also afterwards.

    Losses and gradients are those without it, also with dropout, whose random state is restored, inside
    `encore.curvature.capture`, and where a block's weights, mode or other attributes have changed between its two runs.
    """
    classes = [(block, type(block)) for block in blocks]
    for block, cls in classes:  # of a class of their own, so that a copy of a block runs itself
        block.__class__ = type(cls.__name__, (_Checkpointed, cls), {"__module__": cls.__module__})
    try:
        yield
    finally:
        for block, cls in classes:
            block.__class__ = cls


class _Checkpointed(nn.Module):
    """Comes before a block's class."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run = super().forward
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        state = [(part, {**vars(part), "_parameters": dict(part._parameters)}) for part in self.modules()]

        def run_as_before(*args: Any, **kwargs: Any) -> Any:
            with _restored(state):
                return run(*args, **kwargs)

        return checkpoint(run_as_before, *args, use_reentrant=False, **kwargs)


@contextmanager
def _restored(state: list[tuple[nn.Module, dict[str, Any]]]) -> Iterator[None]:
    """Modules with the attributes (mode, weights, masks) of an earlier moment."""
    now = [(part, part.__dict__) for part, _ in state]
    for part, attributes in state:
        part.__dict__ = attributes
    try:
        yield
    finally:
        for part, attributes in now:
            part.__dict__ = attributes


def uses_checkpoints(setting: Setting, backend: Backend, method: Method, *, trained: int, adapter: bool) -> bool:
    """Whether a run checkpoints activations.

    `auto` does so where what a run holds beside activations (weights, frozen copies of them, and of each trained weight
    a gradient and two moments, all in float32) takes more than half of the device's memory.

    Args:
        setting: of the user.
        backend: the model.
        method: of the run.
        trained: number of trained weights.
        adapter: whether they are an adapter's.

    Raises:
        UsageError: it is on, and the backend has no blocks.
    """
    if setting == "off":
        return False
    if setting == "auto":
        weights = sum(weight.numel() for weight in backend.module.parameters())
        copies = 1 + method.frozen_copies + ("reference" in method.spec.needs and not adapter)
        memory = _device_bytes(backend.device)
        if memory is None or 4 * (copies * weights + 3 * trained) <= FULL * memory:
            return False
    try:
        return len(backend.blocks) > 0
    except UsageError as error:
        if setting == "auto":
            return False
        raise UsageError(
            f"activations of a {backend.name} model can't be checkpointed: it is not a sequence of blocks",
            "leave --checkpoint-activations out; a smaller -o micro_batch_size saves memory as well",
        ) from error


def _device_bytes(device: torch.device) -> int | None:
    """Memory of a device; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
