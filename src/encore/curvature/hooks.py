"""How a capture gets to see layers: a mode that is shown every call, an identity whose backward is shown gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from encore.curvature.layers import READERS, LayerCall

SCALINGS = ("MulBackward0", "DivBackward0", "NegBackward0")
SUMS = ("SumBackward0", "SumBackward1", "MeanBackward0", "MeanBackward1")


class Intercept(TorchFunctionMode):
    """Shows layer calls and `loss.backward()`.

    Args:
        layer: given a call, returns its output, or None to let it run as it is.
        backward: given the loss and a function that runs the backward pass, runs it.
    """

    def __init__(
        self, layer: Callable[[LayerCall], Tensor | None], backward: Callable[[Tensor, Callable[..., Any]], None]
    ) -> None:
        super().__init__()
        self._layer, self._backward = layer, backward

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        reader = READERS.get(func)
        if reader is not None:
            call = reader(*args, **kwargs)
            out = self._layer(call) if call is not None else None
            return func(*args, **kwargs) if out is None else out
        if func is Tensor.backward:
            return self._backward(args[0], lambda **more: func(*args, **{**kwargs, **more}))
        return func(*args, **kwargs)

    def enter_again(self) -> bool:
        """Become active where autograd has switched modes off; whether that was needed."""
        if self in _get_current_function_mode_stack():
            return False
        self.__enter__()
        return True


Seen = Callable[[Tensor, Tensor], None]
"""Given a layer's input (an empty tensor where it is not needed) and its output gradient."""


def hook_gradients(out: Tensor, inputs: Tensor | None, anchor: Tensor, seen: Seen) -> Tensor:
    """A layer's output, such that backward calls `seen`. The anchor is any tensor that requires grad."""
    return _GradientHook.apply(out, anchor, inputs, seen)


class _GradientHook(torch.autograd.Function):
    """The identity.

    It returns an alias and not a view, so that the output may be changed in place. The anchor makes it fire also where
    nothing before it needs a gradient; it is saved to be one tensor more than autograd's own layer saves: a checkpoint
    that were recomputed without taps would then miss tensors, and fail.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, anchor: Tensor, inputs: Tensor | None, seen: Seen) -> Tensor:
        ctx.save_for_backward(anchor, inputs)
        ctx.seen = seen
        ctx.set_materialize_grads(False)
        return out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if grads is not None:
            anchor, inputs = ctx.saved_tensors
            kind = grads.device.type
            with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
                ctx.seen(anchor if inputs is None else inputs, grads)
        return grads, None, None, None


class SumOfLosses(NamedTuple):
    """Where a scalar loss adds up one loss per sample."""

    node: Any
    samples: int

    def masked(self, sample: int) -> Any:
        """Let only one sample's loss pass, until the returned handle is removed."""

        def hook(grads: tuple[Tensor], _: object) -> tuple[Tensor]:
            alone = torch.zeros_like(grads[0])
            alone[sample] = grads[0][sample]
            return (alone,)

        return self.node.register_hook(hook)


def sum_of_losses(loss: Tensor) -> SumOfLosses | None:
    """Read from a scalar's graph that it is the sum or mean of a vector, perhaps scaled; None where it is not."""
    node: Any = loss.grad_fn
    while node is not None and node.name() in SCALINGS:
        before = [following for following, _ in node.next_functions if following is not None]
        node = before[0] if len(before) == 1 else None
    if node is None or node.name() not in SUMS or len(node._saved_self_sym_sizes) != 1:
        return None
    return SumOfLosses(node, int(node._saved_self_sym_sizes[0]))


def backward_pass() -> int:
    """The id of the backward pass that this code runs in, -1 outside of any."""
    return int(torch._C._current_graph_task_id())


def at_its_end(action: Callable[[], None]) -> None:
    """Call something when the backward pass that this code runs in is over."""
    torch.autograd.Variable._execution_engine.queue_callback(action)  # type: ignore[attr-defined]


@contextmanager
def set_aside_grads(weights: Iterable[Tensor]) -> Iterator[None]:
    """In here every `.grad` is None at first; afterwards it is what it was before."""
    kept = [(weight, weight.grad) for weight in weights]
    for weight, _ in kept:
        weight.grad = None
    try:
        yield
    finally:
        for weight, grad in kept:
            weight.grad = grad


def as_autocast_would(inputs: Tensor) -> Tensor:
    """Cast an input as autocast would: what is saved for the gradient is then what a plain step saves."""
    kind = inputs.device.type
    if torch.is_autocast_enabled(kind) and inputs.is_floating_point() and inputs.dtype != torch.float64:
        return inputs.to(torch.get_autocast_dtype(kind))
    return inputs
