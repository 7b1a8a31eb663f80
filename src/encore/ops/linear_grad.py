"""Per-sample weight gradients of a linear layer, reduced as they arise: schemas, fakes, and the twin of every kernel.

For inputs A [N, T, I] and output gradients B [N, T, O], the gradient of sample n is G_n = B_nᵀ A_n, [O, I]. Storing all
of them takes N·O·I; what methods want of them (a Fisher diagonal, norms, dot products, a weighted sum) does not need
that. The ops live under `torch.ops.encore`; kernels for CPU and CUDA register beside the twin here, and win where they
are there (see `encore.ops.native`).
"""

from __future__ import annotations

import torch
from torch import Tensor

_library = torch.library.Library("encore", "DEF")
_library.define(
    "linear_grad_(Tensor inputs, Tensor grads, *, Tensor(a!)? fisher=None, Tensor? scale=None, "
    "Tensor(b!)? total=None, Tensor? weight=None, Tensor? directions=None, bool norms=False) -> (Tensor, Tensor)"
)
_library.define("linear_fisher_(Tensor(a!) fisher, Tensor inputs, Tensor grads, Tensor? scale=None) -> ()")
_library.define("linear_sq_norm(Tensor inputs, Tensor grads) -> Tensor")
_library.define("linear_dot(Tensor inputs, Tensor grads, Tensor directions) -> Tensor")
_library.define("linear_weighted_sum_(Tensor(a!) total, Tensor inputs, Tensor grads, Tensor? weight=None) -> ()")


def linear_grad_(
    inputs: Tensor,
    grads: Tensor,
    *,
    fisher: Tensor | None = None,
    scale: Tensor | None = None,
    total: Tensor | None = None,
    weight: Tensor | None = None,
    directions: Tensor | None = None,
    norms: bool = False,
) -> tuple[Tensor, Tensor]:
    """Several reductions of the per-sample gradients G_n = B_nᵀ A_n, from one pass over them.

    Args:
        inputs: A [N, T, I], float32, bfloat16, float16 or float64; any strides.
        grads: B [N, T, O], of the same or another float type.
        fisher: [O, I], float32 (float64 for the twin); Σ_n scale_n G_n∘G_n is added to it in place.
        scale: [N]; None is all ones.
        total: [O, I]; Σ_n weight_n G_n is added to it in place.
        weight: [N]; None is all ones.
        directions: [M, O, I], what dots are taken with.
        norms: whether squared norms are wanted.

    Returns:
        ‖G_n‖² [N] (empty unless `norms`) and ⟨G_n, V_m⟩ [N, M] (M = 0 without `directions`).
    """
    return torch.ops.encore.linear_grad_(
        inputs, grads, fisher=fisher, scale=scale, total=total, weight=weight, directions=directions, norms=norms
    )


def linear_fisher_(fisher: Tensor, inputs: Tensor, grads: Tensor, scale: Tensor | None = None) -> None:
    """fisher += Σ_n scale_n G_n∘G_n; shapes as in `linear_grad_`."""
    torch.ops.encore.linear_fisher_(fisher, inputs, grads, scale)


def linear_sq_norm(inputs: Tensor, grads: Tensor) -> Tensor:
    """‖G_n‖², [N]; from T×T Gram matrices where that is cheaper than the tiles of G_n."""
    return torch.ops.encore.linear_sq_norm(inputs, grads)


def linear_dot(inputs: Tensor, grads: Tensor, directions: Tensor) -> Tensor:
    """⟨G_n, V_m⟩, [N, M], for V [M, O, I]."""
    return torch.ops.encore.linear_dot(inputs, grads, directions)


def linear_weighted_sum_(total: Tensor, inputs: Tensor, grads: Tensor, weight: Tensor | None = None) -> None:
    """total += Σ_n weight_n G_n: one product, with B's rows scaled."""
    torch.ops.encore.linear_weighted_sum_(total, inputs, grads, weight)


# ----------------------------------------------------------------------------------------- the twin: readable and slow


@torch.library.impl(_library, "linear_grad_", "CompositeExplicitAutograd")
def _linear_grad(
    inputs: Tensor,
    grads: Tensor,
    *,
    fisher: Tensor | None = None,
    scale: Tensor | None = None,
    total: Tensor | None = None,
    weight: Tensor | None = None,
    directions: Tensor | None = None,
    norms: bool = False,
) -> tuple[Tensor, Tensor]:
    check(inputs, grads, fisher, scale, total, weight, directions)
    wide = torch.promote_types(torch.promote_types(inputs.dtype, grads.dtype), torch.float32)
    sq_norms, dots = _results(inputs, directions, norms, wide)
    for n in range(len(inputs)):
        gradient = grads[n].to(wide).T @ inputs[n].to(wide)  # [O, I]
        if total is not None:
            total.add_(gradient if weight is None else gradient * weight[n])
        if directions is not None:
            dots[n] = directions.to(wide).flatten(1) @ gradient.flatten()
        if norms:
            sq_norms[n] = gradient.square().sum()
        if fisher is not None:
            fisher.addcmul_(gradient, gradient if scale is None else gradient * scale[n])
    return sq_norms, dots


@torch.library.register_fake("encore::linear_grad_", lib=_library)
def _linear_grad_fake(
    inputs: Tensor,
    grads: Tensor,
    *,
    fisher: Tensor | None = None,
    scale: Tensor | None = None,
    total: Tensor | None = None,
    weight: Tensor | None = None,
    directions: Tensor | None = None,
    norms: bool = False,
) -> tuple[Tensor, Tensor]:
    check(inputs, grads, fisher, scale, total, weight, directions)
    wide = torch.promote_types(torch.promote_types(inputs.dtype, grads.dtype), torch.float32)
    return _results(inputs, directions, norms, wide)


def _results(inputs: Tensor, directions: Tensor | None, norms: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    count = len(inputs)
    sq_norms = inputs.new_empty(count if norms else 0, dtype=dtype)
    return sq_norms, inputs.new_empty(count, 0 if directions is None else len(directions), dtype=dtype)
