"""The layers that per-sample gradients can be read from: how a call is repeated, and what its gradients give.

A reader takes a layer function's own arguments and returns a `LayerCall`, or None where this use of it is not one that
is read exactly; then the parameter is left to autograd, and `capture` notices that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from encore.curvature.grad_factors import Lookup, Matrix, Part, Vector
from encore.ops import layers
from encore.ops.linear_grad import wide


@dataclass(frozen=True)
class LayerCall:
    """One use of a layer.

    Args:
        inputs: its input; N, the number of samples, is the first dimension.
        weight, bias: as they were given.
        run: computes the output from inputs, weight and bias.
        parts: (inputs, output gradients) -> gradient of the weight, starts counted from the weight's first row.
        bias_rows: output gradients -> per-sample gradient of the bias, [N, D]; asked after `parts`, where both are.
        casts: whether autocast casts its input.
    """

    inputs: Tensor
    weight: Tensor | None
    bias: Tensor | None
    run: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
    parts: Callable[[Tensor, Tensor], list[Part]]
    bias_rows: Callable[[Tensor], Tensor]
    casts: bool = False


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> LayerCall | None:
    if input.dim() < 2 or weight.dim() != 2:
        return None
    return LayerCall(
        input, weight, bias,
        run=lambda x, w, b: F.linear(x, w, b),  # type: ignore[arg-type]
        parts=lambda x, g: [Matrix(layers.as_steps(x), layers.as_steps(g))],
        bias_rows=lambda g: layers.bias_rows(g),
        casts=True,
    )  # fmt: skip


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> LayerCall | None:
    if max_norm is not None or input.dim() < 1:
        return None
    rows = weight.shape[0]

    def parts(indices: Tensor, grads: Tensor) -> list[Part]:
        flat = indices.reshape(len(indices), -1)
        grads = grads.reshape(*flat.shape, -1)
        if padding_idx is not None and rows:
            grads = grads.masked_fill((flat == padding_idx % rows)[..., None], 0)
        if scale_grad_by_freq:  # by how often the sample has the index: the rest of the batch is none of its business
            grads = grads / (flat[:, :, None] == flat[:, None, :]).sum(-1, keepdim=True)
        return [Lookup(flat, grads, 0, rows)]

    return LayerCall(
        input, weight, None,
        run=lambda x, w, b: F.embedding(x, w, padding_idx),  # type: ignore[arg-type]
        parts=parts,
        bias_rows=lambda g: g,
    )  # fmt: skip


def _aten_embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> LayerCall | None:
    return _embedding(indices, weight, None if padding_idx < 0 else padding_idx, scale_grad_by_freq=scale_grad_by_freq)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> LayerCall | None:
    shape = _sizes(normalized_shape)
    if input.dim() <= len(shape):
        return None

    kept: list[Tensor] = []  # mean and 1/σ of each position
    for_bias: list[Tensor] = []  # what came out together with the weight's gradient

    def run(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            return F.layer_norm(x, shape, w, b, eps)
        out, mean, rstd = torch.native_layer_norm(x, shape, w, b, eps)
        kept[:] = mean.detach(), rstd.detach()
        return out

    def rows(x: Tensor, grads: Tensor) -> Tensor:
        if not kept or kept[0].dtype != wide(x):
            kept[:] = torch.native_layer_norm(x.to(wide(x)), shape, None, None, eps)[1:]
        by_weight, by_bias = layers.layer_norm_rows(x, grads, shape, *kept)
        for_bias[:] = [by_bias]
        return by_weight

    return LayerCall(
        input, weight, bias,
        run=run,
        parts=lambda x, g: [Vector(rows(x, g), 0, shape[0])],
        bias_rows=lambda g: for_bias.pop() if for_bias else layers.bias_rows(g.flatten(-len(shape))),
    )  # fmt: skip


def _rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> LayerCall | None:
    shape = _sizes(normalized_shape)
    if input.dim() <= len(shape):
        return None

    def rows(x: Tensor, grads: Tensor) -> Tensor:
        small = torch.finfo(x.dtype).eps if eps is None else eps  # the default depends on the input's type
        return layers.norm_rows(F.rms_norm(x.to(wide(x)), shape, eps=small), grads, len(shape))

    return LayerCall(
        input, weight, None,
        run=lambda x, w, b: F.rms_norm(x, shape, w, eps),
        parts=lambda x, g: [Vector(rows(x, g), 0, shape[0])],
        bias_rows=lambda g: g,
    )  # fmt: skip


def _conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> LayerCall | None:
    if input.dim() != 3:
        return None
    (step,), (spread,) = _sizes(stride), _sizes(dilation)
    outputs, channels, kernel = weight.shape
    around = spread * (kernel - 1)
    if padding == "same":
        pad = (around // 2, around - around // 2)
    elif padding == "valid":
        pad = (0, 0)
    else:
        pad = (_sizes(padding)[0],) * 2  # type: ignore[arg-type]

    def parts(x: Tensor, grads: Tensor) -> list[Part]:
        patches = layers.conv1d_patches(x, kernel, step, pad, spread)  # [N, C, L', kernel]
        matrices: list[Part] = []
        for group in range(groups):
            seen = patches[:, group * channels : (group + 1) * channels].transpose(1, 2).flatten(2)
            start = group * (outputs // groups)
            matrices.append(Matrix(seen, grads[:, start : start + outputs // groups].transpose(1, 2), start))
        return matrices

    return LayerCall(
        input, weight, bias,
        run=lambda x, w, b: F.conv1d(x, w, b, stride, padding, dilation, groups),  # type: ignore[arg-type, misc]
        parts=parts,
        bias_rows=lambda g: layers.bias_rows(g.transpose(1, 2)),
        casts=True,
    )  # fmt: skip


READERS: dict[Callable[..., Any], Callable[..., LayerCall | None]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    torch.embedding: _aten_embedding,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.conv1d: _conv1d,  # torch.conv1d is the same object
}


def _sizes(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
