"""Tensors, shared random generators, weights and files: what checks compare, watch and restore."""

from __future__ import annotations

import functools
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encore.api import Backend
from encore.hashing import module_sha256
from encore.settings import cache_folder
from encore.testing.core import need

TOLERANCE = 1e-4  # of float32 sums in another order
EVENTS = {
    "os.mkdir": "makes the folder", "os.remove": "removes", "os.rename": "renames", "os.rmdir": "removes the folder",
    "os.symlink": "links", "os.link": "links", "os.truncate": "truncates", "socket.connect": "connects to",
    "subprocess.Popen": "starts", "os.system": "runs",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_events: list[str] | None = None


def close(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether two tensors have one shape and |a - b| ≤ tolerance (1 + |b|)."""
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors of one shape."""
    return float((a - b).abs().max()) if a.numel() else 0.0


def need_tensor(
    name: str,
    value: Any,
    shape: tuple[int | None, ...],
    dtype: torch.dtype | None = None,
    gradient: bool | None = None,
) -> None:
    """Raise the fault of a tensor that is not finite or not as described.

    Args:
        name: the function that returned it.
        value: what it returned.
        shape: its shape; None for any length.
        dtype: its type, where that is fixed.
        gradient: whether it requires a gradient, where that is fixed.
    """
    need(isinstance(value, Tensor), f"{name} returns a {type(value).__name__}, not a tensor")
    fits = value.dim() == len(shape) and all(n in (None, m) for n, m in zip(shape, value.shape, strict=True))
    wanted = ", ".join("any" if n is None else str(n) for n in shape)
    need(fits, f"{name} returns shape {list(value.shape)}, not [{wanted}]")
    need(dtype in (None, value.dtype), f"{name} returns {value.dtype}, not {dtype}")
    need(value.isfinite().all(), f"{name} is not finite: {value.flatten()[:4].tolist()}")
    need(gradient in (None, value.requires_grad), f"{name} has {'no' if gradient else 'a'} gradient")


class RandomState:
    """The state of the random generators that a process shares: torch's, numpy's, Python's.

    Python's is restored but not compared: transformers draws from it in every forward pass, without effect.
    """

    def __init__(self) -> None:
        self.torch = torch.get_rng_state()
        self.numpy: Any = np.random.get_state()  # noqa: NPY002
        self.python = random.getstate()

    def restore(self) -> None:
        torch.set_rng_state(self.torch)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)

    def moved(self) -> str:
        """ "torch's", "numpy's", both or "": the generators that are in another state now."""
        now = RandomState()
        moved = [] if torch.equal(now.torch, self.torch) else ["torch's"]
        if any(not np.array_equal(a, b) for a, b in zip(now.numpy, self.numpy, strict=True)):
            moved.append("numpy's")
        return " and ".join(moved)


def seed_shared(seed: int) -> RandomState:
    """Seed the shared random generators; their state."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    return RandomState()


def repeated(name: str, call: Callable[[], Tensor], same: Callable[[Tensor, Tensor], bool] = torch.equal) -> Tensor:
    """The result of a call; raise the fault where a second one differs, or the shared random generators move."""
    before = seed_shared(1)
    first = call()
    moved = before.moved()
    seed_shared(2)
    second = call()
    faults = [] if same(first, second) else [f"two calls of {name} differ"]
    if moved:
        faults.append(f"{name} draws from, or seeds, {moved} shared random generator")
    need(not faults, "; ".join(faults))
    return first


@contextmanager
def undisturbed(*backends: Backend) -> Iterator[None]:
    """Restore weights, modes, gradients and the shared random generators at the end."""
    shared, grad = RandomState(), torch.is_grad_enabled()
    parts = [part for backend in backends for part in (backend.module, *backend.frozen().values())]
    modules = list(dict.fromkeys(parts))  # clones share their frozen parts
    values = [{name: value.detach().clone() for name, value in module.state_dict().items()} for module in modules]
    modes = [(part, part.training) for module in modules for part in module.modules()]
    trainable = [(weight, weight.requires_grad) for module in modules for weight in module.parameters()]
    try:
        yield
    finally:
        shared.restore()
        torch.set_grad_enabled(grad)
        for module, before in zip(modules, values, strict=True):
            for name, value in module.state_dict().items():
                if name in before and before[name].shape == value.shape and not torch.equal(before[name], value):
                    value.copy_(before[name])
        for part, mode in modes:
            part.training = mode
        for weight, required in trainable:
            weight.requires_grad_(required)
            weight.grad = None


def frozen_sha256(backend: Backend) -> Mapping[str, str]:
    """Hash of the weights per frozen part."""
    return {name: module_sha256(part) for name, part in backend.frozen().items()}


@contextmanager
def side_effects() -> Iterator[list[str]]:
    """Collect "writes /tmp/x", "connects to …" by Python's audit events.

    Compiled modules (`__pycache__`), devices and Encore's cache are left out.
    """
    global _events
    _add_hook()
    before, _events = _events, []
    try:
        yield _events
    finally:
        _events = before


@functools.cache
def _add_hook() -> None:
    sys.addaudithook(_record)  # it can't be removed


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is None or not (event == "open" or event in EVENTS):
        return
    where = arguments[1] if event == "socket.connect" else arguments[0]
    if event == "open" and not (isinstance(where, (str, bytes, os.PathLike)) and arguments[2] & WRITING):
        return
    where = os.fsdecode(where) if event == "open" else str(where)
    if "__pycache__" in where or where.startswith(("/dev/", "/proc/")) or Path(where).is_relative_to(cache_folder()):
        return
    _events.append(f"{EVENTS.get(event, 'writes')} {where}")
