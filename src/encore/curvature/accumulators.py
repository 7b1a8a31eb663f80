"""Accumulators of the reductions that a capture computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from encore.curvature.grad_factors import Part
from encore.ops.linear_grad import wide

T = TypeVar("T")


class Accumulators:
    """Reductions of per-sample gradients; arguments are those of `capture`.

    Attributes:
        samples: number of samples of each backward pass.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        fisher: bool | Mapping[str, Tensor],
        norms: bool,
        directions: Sequence[Mapping[str, Tensor]] | None,
        total: bool,
        keep: bool,
    ) -> None:
        self._parameters = parameters
        self._fisher = dict(fisher) if isinstance(fisher, Mapping) else {} if fisher else None
        self._total: dict[str, Tensor] | None = {} if total else None
        self._norms = norms
        self._directions = None if directions is None else _stacked(directions, parameters)
        self._directions_count = 0 if directions is None else len(directions)
        self._keeps = keep
        self.samples: list[int] = []
        self._sq_norms: list[Tensor] = []
        self._dots: list[Tensor] = []
        self._kept: list[list[tuple[str, Part]]] = []
        self.begin_pass()

    def begin_pass(self) -> None:
        """Forget what an unfinished pass may have left."""
        self._pass_norms: Tensor | None = None
        self._pass_dots: Tensor | None = None
        self._pass_parts: list[tuple[str, Part]] = []

    def keep(self, name: str, part: Part) -> None:
        """Hold on to a part for `weighted_sum`, where that was asked for."""
        if self._keeps:
            self._pass_parts.append((name, part))

    def add(self, name: str, part: Part) -> None:
        """Add the gradients of some rows of a parameter: no other part of this pass may hold the same rows."""
        directions = self._directions.get(name) if self._directions is not None else None
        if directions is not None:
            directions = directions[:, part.start : part.start + part.rows]
        if self._fisher is None and self._total is None and directions is None and not self._norms:
            return
        norms, dots = part.reduce_(
            fisher=None if self._fisher is None else self._rows(self._fisher, name, part),
            total=None if self._total is None else self._rows(self._total, name, part),
            directions=directions,
            norms=self._norms,
        )
        if self._norms:
            self._pass_norms = norms if self._pass_norms is None else self._pass_norms + norms
        if directions is not None:
            self._pass_dots = dots if self._pass_dots is None else self._pass_dots + dots

    def end_pass(self, count: int, device: torch.device) -> None:
        """All parts of a pass over `count` samples have been added."""
        self.samples.append(count)
        norms, dots = self._pass_norms, self._pass_dots
        self._sq_norms.append(torch.zeros(count, device=device) if norms is None else norms)
        self._dots.append(torch.zeros(count, self._directions_count, device=device) if dots is None else dots)
        self._kept.append(self._pass_parts)
        self.begin_pass()

    # ------------------------------------------------------------------------------------------------------ results

    def fisher(self) -> dict[str, Tensor]:
        return self._every(_required(self._fisher, "fisher"))

    def total(self) -> dict[str, Tensor]:
        return self._every(_required(self._total, "total"))

    def sq_norms(self) -> Tensor:
        _required(self._norms or None, "norms")
        return torch.cat(self._sq_norms)

    def dots(self) -> Tensor:
        _required(self._directions, "directions")
        return torch.cat(self._dots)

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        _required(self._keeps or None, "keep")
        if weights.shape != (sum(self.samples),):
            raise ValueError(f"weights [{sum(self.samples)}] are needed, not {list(weights.shape)}")
        sums: dict[str, Tensor] = {}
        for parts, own in zip(self._kept, weights.split(self.samples), strict=True):
            for name, part in parts:
                part.add_weighted_(self._rows(sums, name, part), own)
        return self._every(sums)

    def _every(self, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._buffer(buffers, name) for name in self._parameters}

    def _buffer(self, buffers: dict[str, Tensor], name: str) -> Tensor:
        if name not in buffers:
            weight = self._parameters[name]
            buffers[name] = torch.zeros(weight.shape, dtype=wide(weight), device=weight.device)
        return buffers[name]

    def _rows(self, buffers: dict[str, Tensor], name: str, part: Part) -> Tensor:
        """A part's rows of a parameter's sum, as [rows, columns]."""
        buffer = self._buffer(buffers, name)
        return buffer.view(len(buffer), -1)[part.start : part.start + part.rows]


def _required(what: T | None, name: str) -> T:
    if what is None:
        raise AttributeError(f"{name} was not requested: capture(..., {name}=...)")
    return what


def _stacked(directions: Sequence[Mapping[str, Tensor]], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Directions a parameter, [M, rows, columns]; none for a parameter that no direction names."""
    unknown = {name for direction in directions for name in direction} - set(parameters)
    if unknown:
        raise ValueError(f"directions for {sorted(unknown)}, which are not captured")
    stacked = {
        name: torch.stack([d[name].detach() if name in d else torch.zeros_like(weight) for d in directions])
        for name, weight in parameters.items()
        if any(name in direction for direction in directions)
    }
    return {name: stack.flatten(2) if stack.dim() > 2 else stack[..., None] for name, stack in stacked.items()}
