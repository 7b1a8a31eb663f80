"""Weights, gradients and optimiser state split over the processes of a run (FSDP2), while the loop trains.

Of each block of the network every process holds one part; the whole block is gathered while it is computed (Zhao et
al., arXiv 2304.11277). Between two loops, and for what a method does outside of them, the model is whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from encore import distributed
from encore.api import Backend, Method
from encore.errors import UsageError
from encore.unlearn.checks import reads_weights

HINT = "leave --fsdp out: without it, every process holds the whole model"


def check(method: Method) -> None:
    """Check that the loop of a method works on parts of the weights.

    Raises:
        UsageError: it needs whole weights; the message says for what.
    """
    if getattr(method.options, "per_track_clip", None) is not None:
        raise UsageError("--per-track-clip needs whole gradients, and --fsdp splits them", HINT)
    for option, splittable in (("optim", ("adamw", "sign")), ("robust_to", (None,))):
        if (value := getattr(method.options, option, splittable[0])) not in splittable:
            flag = f"--{option.replace('_', '-')} {value}"
            raise UsageError(f"{flag} needs whole weights and gradients, and --fsdp splits them", HINT)
    if reason := reads_weights(method, "penalty", "after_step", "state_dict"):
        raise UsageError(f"method {method.spec.name!r} can't run with --fsdp: {reason} whole weights", HINT)


@contextmanager
def sharded(backend: Backend) -> Iterator[Backend]:
    """A copy of a model, split over all processes; in the end the model receives its weights.

    Args:
        backend: its trainable weights are in CPU memory inside the context.

    Raises:
        UsageError: weights are tied, and can't be split.
    """
    device = backend.device
    backend.module.cpu()
    try:
        copy = backend.clone()
        _split(copy, device)
        with distributed.lockstep(), warnings.catch_warnings():
            # FSDP2 warns about layers whose outputs are views; none is modified in place here.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
            yield copy
            trained = gathered(copy.module.state_dict())
        with torch.no_grad():
            for name, weight in backend.module.state_dict().items():
                weight.copy_(trained[name])
    finally:
        backend.module.to(device)


def _split(backend: Backend, device: torch.device) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.type, (distributed.size(),))
    try:
        blocks = list(backend.blocks)
    except UsageError:  # every layer is split by itself
        blocks = []
    inside = {part for block in blocks for part in block.modules()}
    layers = [part for part in backend.module.modules() if part not in inside and part._parameters]
    owners: dict[Tensor, nn.Module] = {}
    for part in backend.module.modules():
        for weight in part._parameters.values():
            if weight is not None and owners.setdefault(weight, part) is not part:
                raise UsageError(f"the weights of this {type(part).__name__} are tied, and --fsdp splits them", HINT)
    for part in [*blocks, *reversed(layers)]:  # what a layer contains before the layer
        # Weights are gathered again for the backward pass, and never kept: they may be changed between two passes.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
        split = cast(FSDPModule, part)
        split.set_gradient_divide_factor(1.0)  # gradients are summed: losses are shares of a mean
        split.set_force_sum_reduction_for_comms(True)  # gloo has no other
    for part in backend.module.modules():
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(device)


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors of split ones, in CPU memory; others as they are. All processes call this."""
    return {name: whole(tensor).cpu() if is_split(tensor) else tensor for name, tensor in tensors.items()}


def whole(tensor: Tensor) -> Tensor:
    """The whole of a split tensor; another as it is. All processes call this."""
    return cast(Any, tensor).full_tensor() if is_split(tensor) else tensor


def split_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor, where `like` is split; the tensor itself where it is not."""
    if not is_split(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    shape = cast(Any, like)
    return distribute_tensor(tensor.to(like.device), shape.device_mesh, shape.placements, src_data_rank=None)


def is_split(tensor: Tensor) -> bool:
    """Whether a tensor is one part of several (a `DTensor`, whose import takes long)."""
    return hasattr(tensor, "full_tensor")
