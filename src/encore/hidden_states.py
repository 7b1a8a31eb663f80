"""Hidden states of a network: read or replaced by a hook on the module that computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class _Computed(Exception):
    """Ends a forward pass early."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


def output_of(module: nn.Module, forward: Callable[[], object]) -> Tensor:
    """The output of a module in a forward pass, which ends there.

    Args:
        module: part of a network; of a tuple that it returns, the first item is taken.
        forward: runs the network.

    Raises:
        RuntimeError: the forward pass does not use the module.
    """

    def stop(_module: nn.Module, _inputs: object, output: Any) -> None:
        raise _Computed(output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(stop)
    try:
        forward()
    except _Computed as computed:
        return computed.output
    finally:
        handle.remove()
    raise RuntimeError(f"the forward pass does not use the {type(module).__name__}")


@contextmanager
def replaced_output(module: nn.Module, output: Tensor) -> Iterator[None]:
    """Within it, a module returns the given tensor in place of what it computes (activation patching).

    Args:
        module: part of a network; of a tuple that it returns, the first item is replaced.
        output: of the shape that the module returns.
    """

    def replace(_module: nn.Module, _inputs: object, computed: Any) -> Any:
        return (output, *computed[1:]) if isinstance(computed, tuple) else output

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
