"""The base model that a method compares with: a frozen copy, the model without its adapter, or stored likelihoods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from encore.api import Backend, Batch, Clip, Method, Reference
from encore.curvature.fisher_stream import evaluating
from encore.errors import PluginError
from encore.unlearn.adapter import Adapter

Source = Literal["frozen copy", "adapter disabled", "cached NLL"]


def reference_of(
    method: Method, backend: Backend, forget: Sequence[Clip], *, adapter: Adapter | None
) -> tuple[Reference | None, Source | None]:
    """The reference that takes the least memory of those that a method can work with.

    Args:
        method: its spec needs `reference`, `reference_nll`, or none.
        backend: the model before the run.
        forget: clips to forget.
        adapter: of the model.

    Returns:
        The reference and what it is; None and None where the method needs none.
    """
    needs = method.spec.needs
    if "reference_nll" in needs and "reference" not in needs and backend.has_tokens:
        options = method.options
        size = min(getattr(options, "forget_batch_size", 8), getattr(options, "micro_batch_size", 8))
        return CachedNLL(backend, forget, size), "cached NLL"
    if not needs & {"reference", "reference_nll"}:
        return None, None
    if adapter is not None:
        return DisabledAdapter(backend, adapter), "adapter disabled"
    return FrozenReference(backend), "frozen copy"


class FrozenReference(Reference):
    """A frozen copy of the model before the run. The NLL of a clip at noise 0 is computed once."""

    def __init__(self, backend: Backend) -> None:
        self._backend = self._base_of(backend)
        self._nll: dict[Clip, float] = {}

    def _base_of(self, backend: Backend) -> Backend:
        copy = backend.clone()
        copy.module.requires_grad_(False).eval()
        return copy

    @contextmanager
    def _base(self) -> Iterator[Backend]:
        """The backend, which computes as the base inside the context."""
        yield self._backend

    @property
    def module(self) -> torch.nn.Module:
        """Its weights; don't change them."""
        return self._backend.module

    @torch.no_grad()
    def nll(self, batch: Batch) -> Tensor:
        with self._base() as base:
            if batch.noise_index:  # this noise is used once
                return base.losses(batch)
            missing = [clip for clip in batch.clips if clip not in self._nll]
            if missing:
                values = base.losses(Batch.of(missing, batch.codes.device)).tolist()
                self._nll.update(zip(missing, values, strict=True))
        return torch.tensor([self._nll[clip] for clip in batch.clips], device=batch.codes.device)

    @torch.no_grad()
    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        with self._base() as base:
            return base.logits(batch, unconditional=unconditional)

    @torch.no_grad()
    def hidden(self, batch: Batch, depth: float) -> Tensor:
        with self._base() as base:
            return base.hidden(batch, depth)


class DisabledAdapter(FrozenReference):
    """The trained model itself without its adapter, in evaluation mode: no second model."""

    def __init__(self, backend: Backend, adapter: Adapter) -> None:
        self._adapter = adapter
        super().__init__(backend)

    def _base_of(self, backend: Backend) -> Backend:
        return backend

    @contextmanager
    def _base(self) -> Iterator[Backend]:
        with evaluating(self._backend.module), self._adapter.disabled():
            yield self._backend


class CachedNLL(Reference):
    """The base's NLL of each forget clip, computed before the first step; no model is kept.

    Args:
        backend: a token model, before the run.
        forget: clips to forget.
        size: clips per pass, as in the run's steps: the rounding of an NLL depends on it.
    """

    @torch.no_grad()
    def __init__(self, backend: Backend, forget: Sequence[Clip], size: int) -> None:
        self._nll: dict[Clip, Tensor] = {}
        for start in range(0, len(forget), size):
            batch = Batch.of(forget[start : start + size], backend.device)
            self._nll.update(zip(batch.clips, backend.losses(batch), strict=True))

    def nll(self, batch: Batch) -> Tensor:
        missing = [clip.track for clip in batch.clips if clip not in self._nll]
        if missing:
            raise PluginError(
                f"the reference has the NLL of the forget clips alone, and not of this clip of {missing[0]}",
                "a method that compares other clips declares needs={'reference'}",
            )
        return torch.stack([self._nll[clip] for clip in batch.clips]).to(batch.codes.device)

    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        raise self._unavailable("logits")

    def hidden(self, batch: Batch, depth: float) -> Tensor:
        raise self._unavailable("hidden")

    def _unavailable(self, name: str) -> PluginError:
        return PluginError(
            f"reference.{name} is not available to a method that declares reference_nll",
            "declare needs={'reference'} in its spec",
        )
