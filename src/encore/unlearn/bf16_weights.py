"""Weights in bfloat16 while a run trains, and their float32 values to the last bit.

A float32 number is the nearest bfloat16 number and a remainder of 16 bits: the difference of their bits (Kalamkar et
al., arXiv 2005.04680, split SGD; here the bfloat16 number is rounded, not cut off). The network computes with the
first, and the optimiser's step joins both, so that together they are a master copy of 4 bytes per weight. Vectors
(biases, norms) stay in float32: they are few, and autocast leaves norms in float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from encore.api import LossMethod, Method
from encore.errors import EncoreError, UsageError
from encore.settings import cache_folder
from encore.unlearn.checks import reads_weights

REMAINDER = "encore_remainder"  # attribute of a bfloat16 parameter that is trained
HINT = "leave --weights out, or train an adapter: --adapter lora"


def check(method: Method) -> None:
    """Check that a method trains weights by the loop alone, which keeps their float32 values.

    Raises:
        UsageError: it reads or changes weights itself; the message says for what.
    """
    name = method.spec.name
    if not isinstance(method, LossMethod):
        raise UsageError(f"method {name!r} can't run with --weights bf16: it edits float32 weights itself", HINT)
    if "fisher" in method.spec.needs:
        raise UsageError(f"method {name!r} can't run with --weights bf16: its Fisher diagonal is of float32", HINT)
    for option, usual in (("optim", ("adamw", "sign", "repselect")), ("robust_to", (None,))):
        if (value := getattr(method.options, option, usual[0])) not in usual:
            flag = f"--{option.replace('_', '-')} {value}"
            raise UsageError(f"{flag} can't run with --weights bf16: it moves float32 weights a little", HINT)
    if reason := reads_weights(method, "penalty", "after_step", "state_dict", "finish"):
        raise UsageError(f"method {name!r} can't run with --weights bf16: {reason} float32 weights", HINT)


@contextmanager
def bf16_weights(module: nn.Module, adapter: Collection[str] = (), *, to_disk: bool = True) -> Iterator[None]:
    """Inside the context a module's matrices are in bfloat16; afterwards they have their float32 values again.

    Args:
        module: its parameters are changed in place, and stay the same objects.
        adapter: names of weights that stay in float32.
        to_disk: write remainders of weights that are not trained to a temporary file in the cache folder, which has no
            name and is gone with the process; else they stay in memory.

    Raises:
        EncoreError: they can't be written.
    """
    matrices = [
        weight
        for name, weight in module.named_parameters()
        if weight.ndim > 1 and weight.dtype == torch.float32 and name not in adapter
    ]
    halved: list[nn.Parameter] = []
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            for weight in matrices:
                upper, remainder = split(weight.detach())
                if weight.requires_grad or not to_disk:
                    setattr(weight, REMAINDER, remainder)
                else:
                    remainder.cpu().numpy().tofile(file)
                weight.grad = None
                weight.data = upper
                halved.append(weight)
            file.flush()
        except OSError as error:
            raise EncoreError(
                f"the float32 values of the weights can't be kept in {folder}: {error}",
                "free some disk, or set ENCORE_CACHE to a folder on a larger one",
            ) from error
        try:
            yield
        finally:
            file.seek(0)
            for weight in halved:
                weight.grad = None
                if not hasattr(weight, REMAINDER):
                    values = np.fromfile(file, np.int16, weight.numel())
                    setattr(weight, REMAINDER, torch.from_numpy(values).view(weight.shape).to(weight.device))
                weight.data = whole(weight)
                delattr(weight, REMAINDER)


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bfloat16 number of each float32 number, and an int16 remainder."""
    bits = values.contiguous().view(torch.int32)
    upper = (bits + 0x8000) >> 16
    return upper.to(torch.int16).view(torch.bfloat16), (bits - (upper << 16)).to(torch.int16)


def whole(weight: Tensor) -> Tensor:
    """The float32 values of a trained bfloat16 weight; another tensor as it is."""
    remainder = getattr(weight, REMAINDER, None)
    if remainder is None:
        return weight.detach()
    bits = (weight.detach().contiguous().view(torch.int16).to(torch.int32) << 16) + remainder
    return bits.view(torch.float32)


@torch.no_grad()
def assign(weight: Tensor, values: Tensor) -> None:
    """Set a trained bfloat16 weight to float32 values; another tensor stays as it is."""
    if not hasattr(weight, REMAINDER):
        return
    upper, remainder = split(values.to(weight.device))
    weight.copy_(upper)
    getattr(weight, REMAINDER).copy_(remainder)


@contextmanager
def float32(weights: Sequence[Tensor]) -> Iterator[None]:
    """Inside the context trained bfloat16 weights, and their gradients, are in float32; changes of the weights last."""
    halved = [(weight, weight.data) for weight in weights if hasattr(weight, REMAINDER)]
    for weight, _ in halved:
        gradient, weight.grad = weight.grad, None
        weight.data = whole(weight)
        weight.grad = None if gradient is None else gradient.float()
    try:
        yield
    finally:
        for weight, upper in halved:
            values, weight.grad = weight.data, None
            weight.data = upper
            assign(weight, values)


def step(optimizer: torch.optim.Optimizer) -> None:
    """A step of an optimiser on the float32 values; those of one weight exist at a time.

    Args:
        optimizer: treats each weight by itself, as AdamW does.
    """
    groups = [(group, group["params"]) for group in optimizer.param_groups]
    try:
        for group, _ in groups:
            group["params"] = []
        for group, weights in groups:
            for weight in weights:
                group["params"] = [weight]
                with float32([weight]):
                    optimizer.step()
            group["params"] = []
    finally:
        for group, weights in groups:
            group["params"] = weights
