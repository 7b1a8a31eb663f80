"""Per-sample weight gradients of a linear layer, reduced as they arise: schemas, fakes, and the twin of every kernel.

For inputs A [N, T, I] and output gradients B [N, T, O], the gradient of sample n is G_n = B_nᵀ A_n, [O, I]. Storing all
of them takes N·O·I; what methods want of them (a Fisher diagonal, norms, dot products, a weighted sum) does not need
that. The ops live under `torch.ops.encore`. `linear_grad_` is the one that has kernels (see `encore.ops.native`); they
win over its twin where they are there, and the others are made of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from encore.ops import native

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ACCUMULATORS = (torch.float32, torch.float64)

library = torch.library.Library("encore", "DEF")
REDUCTIONS = (
    "*, Tensor(a!)? fisher=None, Tensor? scale=None, Tensor(b!)? total=None, Tensor? weight=None, "
    "Tensor? directions=None, bool norms=False) -> (Tensor, Tensor)"
)
library.define("linear_grad_(Tensor inputs, Tensor grads, " + REDUCTIONS)
# What kernels turn to for inputs that they don't take:
library.define("linear_grad_twin_(Tensor inputs, Tensor grads, " + REDUCTIONS)
library.define("deterministic() -> bool")  # kernels ask it: torch's stable ABI has no call for this
library.define("linear_fisher_(Tensor(a!) fisher, Tensor inputs, Tensor grads, Tensor? scale=None) -> ()")
library.define("linear_sq_norm(Tensor inputs, Tensor grads) -> Tensor")
library.define("linear_dot(Tensor inputs, Tensor grads, Tensor directions) -> Tensor")
library.define("linear_weighted_sum_(Tensor(a!) total, Tensor inputs, Tensor grads, Tensor? weight=None) -> ()")


class Reductions(TypedDict, total=False):
    """What is wanted of per-sample gradients: the keywords of `linear_grad_` and of the ops like it."""

    fisher: Tensor | None
    scale: Tensor | None
    total: Tensor | None
    weight: Tensor | None
    directions: Tensor | None
    norms: bool


def linear_grad_(inputs: Tensor, grads: Tensor, **wanted: Unpack[Reductions]) -> tuple[Tensor, Tensor]:
    """Several reductions of the per-sample gradients G_n = B_nᵀ A_n, from one pass over them.

    Args:
        inputs: A [N, T, I], float32, bfloat16, float16 or float64; any strides.
        grads: B [N, T, O], of the same or another float type.
        fisher: [O, I], float32 or float64; Σ_n scale_n G_n∘G_n is added to it in place.
        scale: [N]; None is all ones.
        total: [O, I], likewise; Σ_n weight_n G_n is added to it in place.
        weight: [N]; None is all ones.
        directions: [M, O, I], what dots are taken with.
        norms: whether squared norms are wanted.

    Returns:
        ‖G_n‖² [N] (empty unless `norms`) and ⟨G_n, V_m⟩ [N, M] (M = 0 without `directions`), in float32, or float64
        where an operand is.

    Raises:
        ValueError: shapes, types or devices that don't fit.
    """
    check(inputs, grads, **wanted)
    return _ops().linear_grad_(inputs, grads, **wanted)


def linear_fisher_(fisher: Tensor, inputs: Tensor, grads: Tensor, scale: Tensor | None = None) -> None:
    """fisher += Σ_n scale_n G_n∘G_n; shapes as in `linear_grad_`."""
    _ops().linear_fisher_(fisher, inputs, grads, scale)


def linear_sq_norm(inputs: Tensor, grads: Tensor) -> Tensor:
    """‖G_n‖², [N], the cheaper way: ⟨A_n A_nᵀ, B_n B_nᵀ⟩ from T×T Gram matrices, or from the tiles of G_n.

    Gram matrices cost T·T·(I + O) (Goodfellow, arXiv 1510.01799, for T = 1; Li et al., arXiv 2110.05679, for any).
    Their error is relative to Σ_t ‖a_t‖²‖b_t‖², so a gradient that cancels over its positions is better taken from
    `linear_grad_(norms=True)`.
    """
    return _ops().linear_sq_norm(inputs, grads)


def linear_dot(inputs: Tensor, grads: Tensor, directions: Tensor) -> Tensor:
    """⟨G_n, V_m⟩, [N, M], for V [M, O, I]."""
    return _ops().linear_dot(inputs, grads, directions)


def linear_weighted_sum_(total: Tensor, inputs: Tensor, grads: Tensor, weight: Tensor | None = None) -> None:
    """total += Σ_n weight_n G_n: one product over all rows of all samples, with B's rows scaled."""
    _ops().linear_weighted_sum_(total, inputs, grads, weight)


def _ops() -> Any:
    """The ops, with their kernels loaded (compiled, if need be) at the first call."""
    native.find()
    return torch.ops.encore


# ------------------------------------------------------------------------------------------------------------- checks


def check(inputs: Tensor, grads: Tensor, **wanted: Unpack[Reductions]) -> None:
    """Raise ValueError where the arguments of `linear_grad_` don't fit one another, naming the one that doesn't."""
    if inputs.dim() != 3 or grads.dim() != 3 or inputs.shape[:2] != grads.shape[:2]:
        found = f"{_describe(inputs)} and {_describe(grads)}"
        raise ValueError(f"inputs [N, T, I] and grads [N, T, O] are needed, not {found}")
    count, _, columns = inputs.shape
    rows = grads.shape[2]
    given: dict[str, Any] = {"inputs": inputs, "grads": grads, **wanted}
    for name, shape, types in (
        ("inputs", inputs.shape, FLOATS),
        ("grads", grads.shape, FLOATS),
        ("fisher", (rows, columns), ACCUMULATORS),
        ("scale", (count,), FLOATS),
        ("total", (rows, columns), ACCUMULATORS),
        ("weight", (count,), FLOATS),
        ("directions", (None, rows, columns), FLOATS),
    ):
        tensor = given.get(name)
        if tensor is None:
            continue
        fits = tensor.dim() == len(shape) and all(b is None or a == b for a, b in zip(tensor.shape, shape, strict=True))
        if not fits or tensor.dtype not in types or tensor.device != inputs.device:
            sizes = ", ".join("M" if size is None else str(size) for size in shape)
            raise ValueError(
                f"{name} is {_describe(tensor)}, where [{sizes}] on {inputs.device} is needed, "
                f"of type {' or '.join(_name(kind) for kind in types)}"
            )


def _describe(tensor: Tensor) -> str:
    return f"{_name(tensor.dtype)} {list(tensor.shape)} on {tensor.device}"


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def wide(*operands: Tensor) -> torch.dtype:
    """What is computed in: float32, or float64 where an operand is."""
    kind = torch.float32
    for operand in operands:
        kind = torch.promote_types(kind, operand.dtype)
    return kind


def results(*operands: Tensor, **wanted: Unpack[Reductions]) -> tuple[Tensor, Tensor]:
    """What an op on operands [N, ...] returns, not yet filled: squared norms and dot products."""
    first, directions = operands[0], wanted.get("directions")
    sq_norms = first.new_empty(len(first) if wanted.get("norms") else 0, dtype=wide(*operands))
    return sq_norms, first.new_empty(len(first), 0 if directions is None else len(directions), dtype=sq_norms.dtype)


def register(op: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Give an op that the library defines its pure-torch kernel, and what it returns where there is no data."""
    library.impl(op, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"encore::{op}", fake, lib=library)


# ----------------------------------------------------------------------------------------- the twin: readable and slow


@torch.no_grad()
def _linear_grad_twin(
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
    check(inputs, grads, fisher=fisher, scale=scale, total=total, weight=weight, directions=directions)
    kind = wide(inputs, grads)
    sq_norms, dots = results(inputs, grads, directions=directions, norms=norms)
    for n in range(len(inputs)):
        gradient = grads[n].to(kind).T @ inputs[n].to(kind)  # [O, I]
        if norms:
            sq_norms[n] = gradient.square().sum()
        if directions is not None:
            dots[n] = directions.to(kind).flatten(1) @ gradient.flatten()
        if total is not None:
            total.add_(gradient if weight is None else gradient * weight[n])
        if fisher is not None:
            fisher.add_(gradient.square() if scale is None else gradient.square() * scale[n])
    return sq_norms, dots


def _linear_grad_fake(inputs: Tensor, grads: Tensor, **wanted: Unpack[Reductions]) -> tuple[Tensor, Tensor]:
    check(inputs, grads, **wanted)
    return results(inputs, grads, **wanted)


# ---------------------------------------------------------------------------- the ops that are made of `linear_grad_`


def _linear_fisher(fisher: Tensor, inputs: Tensor, grads: Tensor, scale: Tensor | None = None) -> None:
    check(inputs, grads, fisher=fisher, scale=scale)
    torch.ops.encore.linear_grad_(inputs, grads, fisher=fisher, scale=scale)


def _linear_fisher_fake(fisher: Tensor, inputs: Tensor, grads: Tensor, scale: Tensor | None = None) -> None:
    check(inputs, grads, fisher=fisher, scale=scale)


@torch.no_grad()
def _linear_sq_norm(inputs: Tensor, grads: Tensor) -> Tensor:
    check(inputs, grads)
    count, length, columns = inputs.shape
    rows = grads.shape[2]
    if length * (columns + rows) >= columns * rows:
        return torch.ops.encore.linear_grad_(inputs, grads, norms=True)[0]
    kind = wide(inputs, grads)
    sq_norms = inputs.new_zeros(count, dtype=kind)
    at_once = max(1, columns * rows // max(1, length * length))  # so that the Gram matrices take less than two G_n
    for start in range(0, count, at_once):
        a, b = inputs[start : start + at_once].to(kind), grads[start : start + at_once].to(kind)
        gram = (a @ a.mT).mul_(b @ b.mT)  # [n, T, T]
        sq_norms[start : start + at_once] = gram.sum((1, 2)).clamp_(min=0)
    return sq_norms


def _linear_sq_norm_fake(inputs: Tensor, grads: Tensor) -> Tensor:
    check(inputs, grads)
    return results(inputs, grads, norms=True)[0]


def _linear_dot(inputs: Tensor, grads: Tensor, directions: Tensor) -> Tensor:
    check(inputs, grads, directions=directions)
    return torch.ops.encore.linear_grad_(inputs, grads, directions=directions)[1]


def _linear_dot_fake(inputs: Tensor, grads: Tensor, directions: Tensor) -> Tensor:
    check(inputs, grads, directions=directions)
    return results(inputs, grads, directions=directions)[1]


@torch.no_grad()
def _linear_weighted_sum(total: Tensor, inputs: Tensor, grads: Tensor, weight: Tensor | None = None) -> None:
    check(inputs, grads, total=total, weight=weight)
    if inputs.dtype == grads.dtype == total.dtype:
        scaled = grads if weight is None else grads * weight[:, None, None].to(grads.dtype)
        total.addmm_(scaled.flatten(0, 1).T, inputs.flatten(0, 1))
    else:  # a product of 16-bit rows would round what it sums to 16 bits
        torch.ops.encore.linear_grad_(inputs, grads, total=total, weight=weight)


def _linear_weighted_sum_fake(total: Tensor, inputs: Tensor, grads: Tensor, weight: Tensor | None = None) -> None:
    check(inputs, grads, total=total, weight=weight)


for _op, _kernel, _fake in (
    ("linear_grad_", _linear_grad_twin, _linear_grad_fake),
    ("linear_grad_twin_", _linear_grad_twin, _linear_grad_fake),
    ("linear_fisher_", _linear_fisher, _linear_fisher_fake),
    ("linear_sq_norm", _linear_sq_norm, _linear_sq_norm_fake),
    ("linear_dot", _linear_dot, _linear_dot_fake),
    ("linear_weighted_sum_", _linear_weighted_sum, _linear_weighted_sum_fake),
):
    register(_op, _kernel, _fake)
library.impl("deterministic", torch.are_deterministic_algorithms_enabled, "CompositeExplicitAutograd")
