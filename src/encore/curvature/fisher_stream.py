"""The Fisher diagonal of a module over a data set, one batch at a time, with nothing kept but the sum."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from encore.curvature.capture import UnsupportedParameterError, capture
from encore.curvature.fisher_file import Fisher
from encore.curvature.hooks import set_aside_grads
from encore.errors import EncoreError
from encore.hashing import module_sha256
from encore.ops.linear_grad import wide

NAMED = 4  # parameters that a warning names
BATCHWISE = "its gradient is scaled by how often the whole batch uses an index (scale_grad_by_freq)"

Item = TypeVar("Item")


class CurvatureWarning(UserWarning):
    """Something could be had in a slower way only."""


def fisher(
    module: nn.Module,
    batches: Iterable[Item],
    losses: Callable[[Item], Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    mode: str = "empirical",
) -> Fisher:
    """F = Σ_n g_n∘g_n over all samples of all batches, for every trainable parameter.

    The module is in evaluation mode meanwhile (no dropout); its state, `.grad` and `requires_grad` stay as they are.
    The first batch takes one more backward pass, in which parameters are found that one pass can't serve (see
    `capture.probe`): they are named in a `CurvatureWarning`, and computed with one pass per sample.

    Args:
        module: its parameters that require a gradient count.
        batches: anything; consumed once, in order.
        losses: batch -> one loss per sample, [N], each depending on its own sample alone.
        dtype: what is summed in, float32 or float64.
        mode: what to call the result's labels.

    Raises:
        UnsupportedParameterError: a later batch uses a parameter in a way that the first did not; or an embedding with
            `scale_grad_by_freq` is used where the samples are not the first dimension.
        EncoreError: there is nothing to train, or `losses` does not return one loss per sample.
    """
    stream = FisherAccumulator(module, dtype)
    with evaluating(module):
        for batch in batches:
            stream.add(lambda batch=batch: losses(batch))  # type: ignore[misc]
    return Fisher(stream.values, stream.samples, mode, module_sha256(module))


class FisherAccumulator:
    """A Fisher that grows batch by batch.

    Args:
        module: as in `fisher`; put it into evaluation mode (`evaluating`).
        dtype: of the sum.

    Attributes:
        values: the sum so far, samples: of how many; both may be set before the first batch, to go on from there.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        self.values = {
            name: torch.zeros(weight.shape, dtype=dtype, device=weight.device)
            for name, weight in module.named_parameters()
            if weight.requires_grad
        }
        if not self.values:
            raise EncoreError("the module has no trainable parameter to take a Fisher of")
        self.samples = 0
        self._module = module
        self._looped: dict[str, nn.Parameter] = {}
        self._capture = self._capturing()
        self._probed = False

    def add(self, losses: Callable[[], Tensor]) -> None:
        """One batch more: `losses` runs the forward pass and returns one loss per sample, [N]; it may be run twice."""
        taken = self._capture
        with set_aside_grads(self._looped.values()):
            with taken:
                value = losses()
                if value.dim() != 1 or not value.requires_grad:
                    raise EncoreError(f"losses must be one differentiable loss per sample, not {list(value.shape)}")
                refused = taken.probe(value) if not self._probed or taken.unproven(len(value)) else {}
                self._probed = True
                if not refused:
                    with taken.muted():
                        self._add_one_by_one(value)
                    value.sum().backward()
            if not refused:
                self._collect()
                self.samples += len(value)
                return
        self._refuse_batchwise(refused)
        self._looped |= {name: weight for name, weight in self._module.named_parameters() if name in refused}
        self._capture = self._capturing()
        reasons = "; ".join(f"{name} ({why})" for name, why in list(refused.items())[:NAMED])
        reasons += f"; and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
        warnings.warn(f"one backward pass per sample for {reasons}", CurvatureWarning, stacklevel=3)
        self.add(losses)

    def _refuse_batchwise(self, names: Collection[str]) -> None:
        """A pass for one loss still sees the whole batch: what autograd scales by the batch can't be had that way."""
        scaled = {
            f"{prefix}.weight" if prefix else "weight"
            for prefix, part in self._module.named_modules()
            if getattr(part, "scale_grad_by_freq", False)
        }
        if wrong := scaled.intersection(names):
            raise UnsupportedParameterError(dict.fromkeys(sorted(wrong), BATCHWISE), "freeze it")

    def _capturing(self) -> capture:
        """A capture that adds to `values`, or to sums of its own where it sums in another type."""
        weights = {n: weight for n, weight in self._module.named_parameters() if n in self.values}
        sums = {
            name: value if value.dtype == wide(weights[name]) else torch.zeros_like(value, dtype=wide(weights[name]))
            for name, value in self.values.items()
            if name not in self._looped
        }
        return capture(self._module, fisher=sums, skip=self._looped)

    def _collect(self) -> None:
        for name, value in self._capture.fisher.items():
            if value is not self.values[name]:
                self.values[name] += value
                value.zero_()

    def _add_one_by_one(self, losses: Tensor) -> None:
        """The looped parameters' g_n∘g_n, from the graph that the capture's own backward will go through afterwards."""
        if not self._looped:
            return
        for loss in losses:
            for weight in self._looped.values():
                weight.grad = None
            loss.backward(retain_graph=True)
            for name, weight in self._looped.items():
                if weight.grad is not None:
                    self.values[name] += weight.grad.to(self.values[name].dtype).square()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode in here; each submodule's own mode is restored afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
