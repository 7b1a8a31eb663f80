"""Per-sample gradients of the other layers: embeddings, biases, layer norms, one-dimensional convolutions.

What `encore.ops.linear_grad` is for matrices: reductions of g_n, sample by sample, with the same keywords and results.
They have no kernel of their own: a bias's or a norm's gradients are [N, D] and cheap (`vector_grad_` reduces them), an
embedding's are as many rows as a sample has tokens, and a convolution is a linear layer over patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from encore.ops.linear_grad import REDUCTIONS, Reductions, library, register, results, wide

STRETCH = 256
"""Positions that float32 adds up one after another: rounding errors grow with this root rather than with T's."""

library.define("vector_grad_(Tensor rows, " + REDUCTIONS)
library.define("embedding_grad_(Tensor indices, Tensor grads, int size, " + REDUCTIONS)


def vector_grad_(rows: Tensor, **wanted: Unpack[Reductions]) -> tuple[Tensor, Tensor]:
    """Reductions of per-sample gradients that are there already.

    Args:
        rows: g_n, [N, D].
        fisher, total: [D], added to in place; directions: [M, D]; the rest as in `linear_grad_`.

    Returns:
        ‖g_n‖² [N] (empty unless `norms`) and ⟨g_n, V_m⟩ [N, M].
    """
    return torch.ops.encore.vector_grad_(rows, **wanted)


def embedding_grad_(indices: Tensor, grads: Tensor, size: int, **wanted: Unpack[Reductions]) -> tuple[Tensor, Tensor]:
    """Reductions of the per-sample gradients of an embedding's table, which are never made dense.

    The rows of a token that a sample holds several times are summed before anything is squared.

    Args:
        indices: [N, T], int64; a row of the table each.
        grads: [N, T, D], gradient of each looked-up row.
        size: V, how many rows the table has.
        fisher, total: [V, D], added to in place; directions: [M, V, D]; the rest as in `linear_grad_`.

    Returns:
        ‖g_n‖² [N] (empty unless `norms`) and ⟨g_n, V_m⟩ [N, M].
    """
    return torch.ops.encore.embedding_grad_(indices, grads, size, **wanted)


def bias_rows(grads: Tensor) -> Tensor:
    """Per-sample gradient of a linear layer's bias: [N, ..., O] -> [N, O]."""
    return as_steps(grads).sum(1, dtype=wide(grads))


def norm_rows(normalized: Tensor, grads: Tensor, dims: int) -> Tensor:
    """Per-sample gradient of a norm's weight: x̂ and output gradients [N, ..., *shape] -> [N, D].

    Args:
        normalized: x̂, the input after normalisation and before the weight. dims: of how many dimensions `shape` is.
    """
    products = grads.to(wide(grads)) * normalized
    return as_steps(products.flatten(-dims)).sum(1)


def layer_norm_rows(
    inputs: Tensor, grads: Tensor, shape: Sequence[int], mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Per-sample gradients of a layer norm's weight and bias, [N, D] both, from what its forward pass has kept.

    On a CPU by torch's own backward kernel, a sample at a time: one pass over memory instead of four. It adds up
    positions one after another, so long samples are cut. Elsewhere so many small kernels cost more than they save.

    Args:
        inputs, grads: [N, ..., *shape]. mean, rstd: of each position, [N, ..., 1], in the type that is computed in.
    """
    if inputs.device.type != "cpu":
        normalized = (inputs.to(mean.dtype) - mean) * rstd
        return norm_rows(normalized, grads, len(shape)), bias_rows(grads.flatten(-len(shape)))
    count, size = len(inputs), math.prod(shape)
    if not inputs.numel():
        return mean.new_zeros(count, size), mean.new_zeros(count, size)
    kind, steps = mean.dtype, mean.numel() // count
    sizes = [min(STRETCH, steps - t) for _ in range(count) for t in range(0, steps, STRETCH)]
    cuts = [value.to(kind).reshape(count * steps, *shape).split(sizes) for value in (grads, inputs)]
    cuts += [value.reshape(count * steps, 1).split(sizes) for value in (mean, rstd)]
    weight = mean.new_empty(shape)  # its values don't enter
    kernel = torch.ops.aten.native_layer_norm_backward.default
    each = [kernel(g, x, shape, m, r, weight, weight, [False, True, True]) for g, x, m, r in zip(*cuts, strict=True)]
    by_weight, by_bias = (torch.stack([of_cut[k] for of_cut in each]).view(count, -1, size).sum(1) for k in (1, 2))
    return by_weight, by_bias


def conv1d_patches(inputs: Tensor, kernel: int, stride: int, padding: tuple[int, int], dilation: int) -> Tensor:
    """What each output step of a convolution sees, as a view of the padded input: [N, C, L] -> [N, C, L', kernel]."""
    padded = F.pad(inputs, padding)
    count, channels, length = padded.shape
    steps = (length - dilation * (kernel - 1) - 1) // stride + 1
    by_sample, by_channel, by_step = padded.stride()
    return padded.as_strided(
        (count, channels, steps, kernel),
        (by_sample, by_channel, by_step * stride, by_step * dilation),
    )


def as_steps(values: Tensor) -> Tensor:
    """[N, ..., D] -> [N, T, D]; a view wherever the strides allow it."""
    return values.unsqueeze(1) if values.dim() == 2 else values.flatten(1, -2)


# -------------------------------------------------------------------------------------------------------- how they work


@torch.no_grad()
def _vector_grad(
    rows: Tensor,
    *,
    fisher: Tensor | None = None,
    scale: Tensor | None = None,
    total: Tensor | None = None,
    weight: Tensor | None = None,
    directions: Tensor | None = None,
    norms: bool = False,
) -> tuple[Tensor, Tensor]:
    rows = rows.to(wide(rows))
    if fisher is not None:
        squares = rows.square()
        fisher.add_((squares if scale is None else squares * scale[:, None]).sum(0))
    if total is not None:
        total.add_((rows if weight is None else rows * weight[:, None]).sum(0))
    sq_norms = rows.square().sum(1) if norms else rows.new_empty(0)
    dots = rows.new_empty(len(rows), 0) if directions is None else rows @ directions.to(rows.dtype).T
    return sq_norms, dots


def _vector_grad_fake(rows: Tensor, **wanted: Unpack[Reductions]) -> tuple[Tensor, Tensor]:
    return results(rows, **wanted)


@torch.no_grad()
def _embedding_grad(
    indices: Tensor,
    grads: Tensor,
    size: int,
    *,
    fisher: Tensor | None = None,
    scale: Tensor | None = None,
    total: Tensor | None = None,
    weight: Tensor | None = None,
    directions: Tensor | None = None,
    norms: bool = False,
) -> tuple[Tensor, Tensor]:
    count, _, width = grads.shape
    kind = wide(grads)
    keys = indices + size * torch.arange(count, device=indices.device)[:, None]
    used, place = keys.flatten().unique(return_inverse=True)  # [U]: each (sample, token) once
    sums = torch.zeros(len(used), width, dtype=kind, device=grads.device)
    sums.index_add_(0, place, grads.reshape(-1, width).to(kind))
    sample, token = used // size, used % size
    if total is not None:
        rows = sums if weight is None else sums * weight[sample, None]
        total.index_add_(0, token, rows.to(total.dtype))
    dots = sums.new_zeros(count, 0 if directions is None else len(directions))
    if directions is not None:
        products = torch.stack([(sums * direction[token].to(kind)).sum(1) for direction in directions], 1)  # [U, M]
        dots.index_add_(0, sample, products)
    sq_norms = sums.new_zeros(count if norms else 0)
    if norms or fisher is not None:
        squares = sums.square_()
        if norms:
            sq_norms.index_add_(0, sample, squares.sum(1))
        if fisher is not None:
            rows = squares if scale is None else squares * scale[sample, None]
            fisher.index_add_(0, token, rows.to(fisher.dtype))
    return sq_norms, dots


def _embedding_grad_fake(
    indices: Tensor, grads: Tensor, size: int, **wanted: Unpack[Reductions]
) -> tuple[Tensor, Tensor]:
    return results(grads, **wanted)


register("vector_grad_", _vector_grad, _vector_grad_fake)
register("embedding_grad_", _embedding_grad, _embedding_grad_fake)
