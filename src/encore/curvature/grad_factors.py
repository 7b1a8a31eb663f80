"""What one call of a layer adds to a parameter's per-sample gradients, and how calls that add to the same rows join.

All rows are those of the parameter, seen as a matrix [rows, columns]; a slice of a packed weight is a range of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from encore.ops import layers
from encore.ops.linear_grad import linear_fisher_, linear_grad_, linear_sq_norm, linear_weighted_sum_


@dataclass(frozen=True)
class Matrix:
    """Part of a gradient: G_n = B_nᵀ A_n in rows [start, start + O) of a parameter seen as [rows, I]."""

    inputs: Tensor  # A [N, T, I]
    grads: Tensor  # B [N, T, O]
    start: int = 0

    @property
    def rows(self) -> int:
        return self.grads.shape[-1]

    def reduce_(
        self, *, fisher: Tensor | None, total: Tensor | None, directions: Tensor | None, norms: bool
    ) -> tuple[Tensor, Tensor]:
        """Add what is wanted to these rows of `fisher` and `total`; ‖G_n‖² [N] and ⟨G_n, V_m⟩ [N, M] (or empty)."""
        if directions is None and total is None:  # the ops that ask for one thing know a cheaper way where there is one
            empty = self.inputs.new_empty(len(self.inputs), 0)
            if fisher is None:
                return linear_sq_norm(self.inputs, self.grads), empty
            if not norms:
                linear_fisher_(fisher, self.inputs, self.grads)
                return self.inputs.new_empty(0), empty
        return linear_grad_(self.inputs, self.grads, fisher=fisher, total=total, directions=directions, norms=norms)

    def add_weighted_(self, total: Tensor, weights: Tensor) -> None:
        """total += Σ_n w_n G_n."""
        linear_weighted_sum_(total, self.inputs, self.grads, weights)

    def cut(self, start: int, stop: int) -> Matrix:
        """Rows [start, stop) alone."""
        return Matrix(self.inputs, self.grads[..., start - self.start : stop - self.start], start)


@dataclass(frozen=True)
class Lookup:
    """Part of a gradient: rows of an embedding's table, one a token."""

    indices: Tensor  # [N, T], counted from the parameter's first row
    grads: Tensor  # [N, T, D]
    start: int
    rows: int

    def reduce_(
        self, *, fisher: Tensor | None, total: Tensor | None, directions: Tensor | None, norms: bool
    ) -> tuple[Tensor, Tensor]:
        """As `Matrix.reduce_`."""
        return layers.embedding_grad_(
            self.indices - self.start, self.grads, self.rows, fisher=fisher, total=total, directions=directions,
            norms=norms,
        )  # fmt: skip

    def add_weighted_(self, total: Tensor, weights: Tensor) -> None:
        """total += Σ_n w_n g_n."""
        layers.embedding_grad_(self.indices - self.start, self.grads, self.rows, total=total, weight=weights)

    def as_matrix(self) -> Matrix:
        """The same gradient as a product with one-hot rows, for a table that is a linear layer's weight too."""
        hot = F.one_hot(self.indices - self.start, self.rows).to(self.grads.dtype)  # [N, T, V], as large as logits
        return Matrix(self.grads, hot, self.start)


@dataclass(frozen=True)
class Vector:
    """Part of a gradient that is small enough to be kept: g_n itself, over rows [start, start + rows)."""

    values: Tensor  # [N, D]
    start: int
    rows: int

    def reduce_(
        self, *, fisher: Tensor | None, total: Tensor | None, directions: Tensor | None, norms: bool
    ) -> tuple[Tensor, Tensor]:
        """As `Matrix.reduce_`."""
        return layers.vector_grad_(
            self.values,
            fisher=None if fisher is None else fisher.view(-1),
            total=None if total is None else total.view(-1),
            directions=None if directions is None else directions.flatten(1),
            norms=norms,
        )

    def add_weighted_(self, total: Tensor, weights: Tensor) -> None:
        """total += Σ_n w_n g_n."""
        layers.vector_grad_(self.values, total=total.view(-1), weight=weights)

    def cut(self, start: int, stop: int) -> Vector:
        """Rows [start, stop) alone."""
        rows = self.values.view(len(self.values), self.rows, -1)[:, start - self.start : stop - self.start]
        return Vector(rows.flatten(1), start, stop - start)


Part = Matrix | Lookup | Vector


def moved(part: Part, by: int) -> Part:
    """The part, its rows counted from another start."""
    if isinstance(part, Lookup):
        return replace(part, indices=part.indices + by if by else part.indices, start=part.start + by)
    return replace(part, start=part.start + by)


def joined(parts: Sequence[Part]) -> list[Part] | None:
    """Parts of one parameter's gradient as parts that share no rows, so that squares of each are squares of the sum.

    Products are strung together along T: [A1; A2] and [B1; B2] give B1ᵀA1 + B2ᵀA2. None where they can't be joined.
    """
    if all(isinstance(part, Lookup) for part in parts) and len({(part.start, part.rows) for part in parts}) == 1:
        lookups = [part for part in parts if isinstance(part, Lookup)]
        first = lookups[0]
        indices = torch.cat([part.indices for part in lookups], 1)
        return [Lookup(indices, _concatenated([part.grads for part in lookups]), first.start, first.rows)]
    alike = [part.as_matrix() if isinstance(part, Lookup) else part for part in parts]
    if len({type(part) for part in alike}) != 1:
        return None
    bounds = sorted({bound for part in alike for bound in (part.start, part.start + part.rows)})
    merged: list[Part] = []
    for start, stop in pairwise(bounds):
        over = [part.cut(start, stop) for part in alike if part.start <= start and stop <= part.start + part.rows]
        matrices = [part for part in over if isinstance(part, Matrix)]
        vectors = [part for part in over if isinstance(part, Vector)]
        if matrices:
            inputs, grads = _concatenated([m.inputs for m in matrices]), _concatenated([m.grads for m in matrices])
            merged.append(Matrix(inputs, grads, start))
        elif vectors:
            merged.append(Vector(torch.stack([v.values for v in vectors]).sum(0), start, stop - start))
    return merged


def _concatenated(tensors: Sequence[Tensor]) -> Tensor:
    """[N, T1, D], [N, T2, D], ... -> [N, T1 + T2 + ..., D], in the widest of their types; one alone as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), 1)
