"""The other layers' per-sample gradients against autograd, a sample at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from encore.ops import layers

SIZES = st.integers(1, 7)


def check_reductions(rows: Tensor, reduce: object, tolerance: float = 1e-12) -> None:
    """`reduce` against the dense per-sample gradients `rows` [N, *shape]: alone, together, scaled, added to."""
    count, shape = len(rows), rows.shape[1:]
    scale, weight = torch.randn(2, count, dtype=torch.float64)
    directions = torch.randn(3, *shape, dtype=torch.float64)
    fisher, total = torch.ones(2, *shape, dtype=torch.float64)
    sq_norms, dots = reduce(  # type: ignore[operator]
        fisher=fisher, scale=scale, total=total, weight=weight, directions=directions, norms=True
    )
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(fisher, 1 + torch.tensordot(scale, rows.square(), 1), **close)
    torch.testing.assert_close(total, 1 + torch.tensordot(weight, rows, 1), **close)
    torch.testing.assert_close(sq_norms, rows.flatten(1).square().sum(1), **close)
    torch.testing.assert_close(dots, rows.flatten(1) @ directions.flatten(1).T, **close)
    fisher, total = torch.zeros(2, *shape, dtype=torch.float64)
    sq_norms, dots = reduce(fisher=fisher)  # type: ignore[operator]
    assert (sq_norms.shape, dots.shape) == ((0,), (count, 0))
    torch.testing.assert_close(fisher, rows.square().sum(0), **close)
    reduce(total=total)  # type: ignore[operator]
    torch.testing.assert_close(total, rows.sum(0), **close)


def grads_of(function: object, weight: Tensor, *samples: Tensor) -> Tensor:
    """Gradient of sum(function(sample, weight) * grad) a sample: [N, *weight.shape]."""
    rows = []
    for row in zip(*samples, strict=True):
        leaf = weight.clone().requires_grad_()
        function(*row, leaf).backward()  # type: ignore[operator]
        rows.append(leaf.grad)
    return torch.stack(rows)


@settings(deadline=None, max_examples=30)
@given(SIZES, SIZES)
def test_vectors(count: int, width: int) -> None:
    rows = torch.randn(count, width, dtype=torch.float64)
    check_reductions(rows, lambda **wanted: layers.vector_grad_(rows, **wanted))


@settings(deadline=None, max_examples=50)
@given(SIZES, st.integers(0, 9), SIZES, SIZES)
def test_embeddings(count: int, steps: int, size: int, width: int) -> None:
    """Few tokens and many positions: duplicates are summed before they are squared."""
    indices = torch.randint(size, (count, 2, steps))[:, 1]  # a strided view
    grads = torch.randn(count, width, steps, dtype=torch.float64).transpose(1, 2)
    rows = torch.zeros(count, size, width, dtype=torch.float64)
    for n in range(count):
        for t in range(steps):
            rows[n, indices[n, t]] += grads[n, t]
    check_reductions(rows, lambda **wanted: layers.embedding_grad_(indices, grads, size, **wanted))


def test_embeddings_take_no_more_than_the_tokens_there_are() -> None:
    """A table that could not be made dense a sample: 8 samples of it would take 64 GB."""
    indices, grads = torch.randint(2**21, (8, 5)), torch.randn(8, 5, 1000)
    sq_norms, _ = layers.embedding_grad_(indices, grads, 2**21, norms=True)
    torch.testing.assert_close(sq_norms, grads.square().sum((1, 2)))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_sixteen_bit_gradients_are_summed_in_float32(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    indices, grads = torch.zeros(2, 3000, dtype=torch.int64), torch.rand(2, 3000, 4).to(kind)
    exact = grads.double().sum(1)
    fisher = torch.zeros(1, 4)
    layers.embedding_grad_(indices, grads, 1, fisher=fisher)
    torch.testing.assert_close(fisher[0].double(), exact.square().sum(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(layers.bias_rows(grads).double(), exact, rtol=1e-6, atol=0)
    one = torch.ones(2, 3000, 4)
    torch.testing.assert_close(layers.norm_rows(one, grads, 1).double(), exact, rtol=1e-6, atol=0)
    mean, rstd = torch.zeros(2, 3000, 1), torch.ones(2, 3000, 1)
    for rows in layers.layer_norm_rows(one, grads, (4,), mean, rstd):
        torch.testing.assert_close(rows.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("middle", [(), (5,), (2, 3)])
def test_biases(middle: tuple[int, ...]) -> None:
    grads = torch.randn(3, *middle, 4, dtype=torch.float64)
    exact = grads_of(lambda grad, bias: (bias.expand_as(grad) * grad).sum(), torch.zeros(4).double(), grads)
    torch.testing.assert_close(layers.bias_rows(grads), exact)


@pytest.mark.parametrize("middle", [(), (5,), (2, 3)])
@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_norms(middle: tuple[int, ...], shape: tuple[int, ...]) -> None:
    inputs, grads = torch.randn(2, 3, *middle, *shape, dtype=torch.float64)
    one = torch.ones(shape, dtype=torch.float64)
    weights = grads_of(lambda x, grad, w: (F.layer_norm(x, shape, w) * grad).sum(), one, inputs, grads)
    biases = grads_of(lambda x, grad, b: (F.layer_norm(x, shape, one, b) * grad).sum(), one, inputs, grads)
    torch.testing.assert_close(layers.norm_rows(F.layer_norm(inputs, shape), grads, len(shape)), weights.flatten(1))
    _, mean, rstd = torch.native_layer_norm(inputs, shape, None, None, 1e-5)
    by_weight, by_bias = layers.layer_norm_rows(inputs, grads, shape, mean, rstd)
    torch.testing.assert_close(by_weight, weights.flatten(1))
    torch.testing.assert_close(by_bias, biases.flatten(1))


def test_norms_away_from_the_cpu() -> None:
    """The shapes, at least, of what a device without tests here computes."""
    values, stats = torch.empty(2, 3, 4, 5, device="meta"), torch.empty(2, 3, 1, 1, device="meta")
    for rows in layers.layer_norm_rows(values, values, (4, 5), stats, stats):
        assert rows.shape == (2, 20)


def test_norm_of_nothing() -> None:
    for count, steps in ((0, 3), (2, 0)):
        nothing, stats = torch.zeros(count, steps, 4), torch.zeros(count, steps, 1)
        for rows in layers.layer_norm_rows(nothing, nothing, (4,), stats, stats):
            assert torch.equal(rows, torch.zeros(count, 4))


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(6, 12), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3)
)
def test_convolution_is_a_linear_layer_over_patches(
    count: int, channels: int, length: int, kernel: int, stride: int, padding: int
) -> None:
    for dilation in (1, 2):
        inputs = torch.randn(count, length, channels, dtype=torch.float64).transpose(1, 2)
        weight = torch.randn(5, channels, kernel, dtype=torch.float64)
        patches = layers.conv1d_patches(inputs, kernel, stride, (padding, padding), dilation)
        expected = F.conv1d(inputs, weight, stride=stride, padding=padding, dilation=dilation)
        torch.testing.assert_close(torch.einsum("nclk,ock->nol", patches, weight), expected)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(kind: torch.dtype) -> None:
    rows, indices, grads = torch.randn(3, 5, dtype=kind), torch.tensor([[1, 1], [0, 3], [3, 3]]), torch.ones(3, 2, 5)
    factors = torch.ones(3)
    for asked in ({}, {"norms": True}, {"fisher": torch.zeros(5), "scale": factors, "total": torch.zeros(5)}):
        opcheck(torch.ops.encore.vector_grad_.default, (rows,), asked)
    opcheck(torch.ops.encore.vector_grad_.default, (rows,), {"directions": torch.ones(2, 5), "weight": factors})
    fisher, total, directions = torch.zeros(4, 5), torch.zeros(4, 5), torch.ones(2, 4, 5)
    for asked in ({}, {"norms": True, "fisher": fisher, "scale": factors, "total": total, "directions": directions}):
        opcheck(torch.ops.encore.embedding_grad_.default, (indices, grads.to(kind), 4), asked)
