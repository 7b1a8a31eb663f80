"""linear_grad on a GPU, against float64 per-sample gradients that are stored whole; skipped where there is no GPU."""

from __future__ import annotations

import os
from functools import partial
from unittest import mock

import pytest
import torch
from tests.ops.float64 import error, gradients
from tests.ops.float64 import normal as normal_on
from torch import Tensor
from torch.library import opcheck

from encore.ops import native
from encore.ops.linear_grad import linear_dot, linear_fisher_, linear_grad_, linear_sq_norm, linear_weighted_sum_

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

CAPABILITY = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
normal = partial(normal_on, device="cuda")
KERNELS = [
    "",  # what the device and the shape choose
    "simt",
    pytest.param("sm80", marks=pytest.mark.skipif(CAPABILITY < (8, 0), reason="needs compute capability 8.0")),
    *(
        pytest.param(name, marks=pytest.mark.skipif(CAPABILITY != (9, 0), reason="needs compute capability 9.0"))
        for name in ("sm90-single", "sm90")
    ),
]
SHAPES = [(3, 250, 70, 45), (2, 700, 320, 513), (8, 1, 16, 6), (1, 37, 129, 1), (5, 3, 1, 29), (4, 100, 1024, 768)]


@pytest.fixture(autouse=True)
def kernels_are_there():
    assert native.find().module is not None, native.find().why
    assert native.find().module.build_info()["cuda_archs"], "the library was built without CUDA kernels"


def bound(length: int, inputs: Tensor, grads: Tensor) -> float:
    """What the issue allows: for 16-bit operands of one type, and for what is split into high and low parts."""
    if inputs.dtype == grads.dtype != torch.float32:
        return 2e-6 * max(length, 1) ** 0.5
    return 5e-5


def forced(kernel: str):
    return mock.patch.dict(os.environ, ENCORE_CUDA_KERNEL=kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("types", [("float32",) * 2, ("bfloat16",) * 2, ("float16",) * 2, ("float32", "bfloat16")])
def test_every_reduction_against_float64(kernel, shape, types):
    count, length, columns, rows = shape
    inputs = normal(count, length, columns, seed=1, dtype=TYPES[types[0]])
    grads = normal(count, length, rows, seed=2, dtype=TYPES[types[1]])
    scale, weight = normal(count, seed=3).abs(), normal(count, seed=4)
    directions = normal(2, rows, columns, seed=5)
    guarded = [torch.full((rows + 2, columns + 5), -7.0, device="cuda") for _ in range(2)]
    fisher, total = (matrix[1:-1, 2 : 2 + columns].zero_() for matrix in guarded)
    with forced(kernel):
        sq_norms, dots = linear_grad_(
            inputs, grads,
            fisher=fisher, scale=scale, total=total, weight=weight, directions=directions, norms=True,
        )  # fmt: skip
    whole, allowed = gradients(inputs, grads), bound(length, inputs, grads)
    assert error(fisher, torch.einsum("n,noi->oi", scale.double(), whole.square())) <= allowed
    assert error(total, torch.einsum("n,noi->oi", weight.double(), whole)) <= allowed
    assert error(sq_norms, whole.square().sum((1, 2))) <= allowed
    size = whole.flatten(1).norm(dim=1)[:, None] * directions.double().flatten(1).norm(dim=1)
    assert error(size + dots - torch.einsum("noi,moi->nm", whole, directions.double()), size) <= allowed
    for matrix in guarded:
        matrix[1:-1, 2 : 2 + columns] = -7.0
        assert (matrix == -7.0).all(), "what lies beside the result was written to"


@pytest.mark.parametrize("layout", ["a wider matrix", "time first", "channels first", "one sample", "shifted"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_layouts(layout, dtype):
    x = normal(3, 40, 136, seed=1, dtype=dtype)
    if layout == "a wider matrix":
        x = torch.cat([torch.full_like(x, torch.nan), x, torch.full_like(x, torch.nan)], dim=2)[..., 136:272]
    elif layout == "time first":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "channels first":
        x = x.mT.contiguous().mT
    elif layout == "one sample":
        x = x[:1].expand(3, -1, -1)
    else:
        x = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(3, 40, 136)
    grads, fisher = normal(3, 40, 72, seed=2, dtype=dtype), torch.zeros(72, 136, device="cuda")
    linear_fisher_(fisher, x, grads)
    assert error(fisher, gradients(x, grads).square().sum(0)) <= bound(40, x, grads)


def test_the_other_ops_and_empty_ones():
    inputs, grads = normal(4, 30, 100, seed=1), normal(4, 30, 90, seed=2)
    directions, weight, total = normal(2, 90, 100, seed=3), normal(4, seed=4), torch.zeros(90, 100, device="cuda")
    whole = gradients(inputs, grads)
    assert error(linear_sq_norm(inputs, grads), whole.square().sum((1, 2))) <= 5e-5
    size = whole.flatten(1).norm(dim=1)[:, None] * directions.double().flatten(1).norm(dim=1)
    dots = torch.einsum("noi,moi->nm", whole, directions.double())
    assert error(size + linear_dot(inputs, grads, directions) - dots, size) <= 5e-5
    linear_weighted_sum_(total, inputs, grads, weight)
    assert error(total, torch.einsum("n,noi->oi", weight.double(), whole)) <= 5e-5
    for n, t in ((0, 5), (3, 0)):
        kept = total.clone()
        norms, _ = linear_grad_(inputs.new_zeros(n, t, 100), inputs.new_zeros(n, t, 90), total=total, norms=True)
        assert torch.equal(norms, torch.zeros(n, device="cuda"))
        assert torch.equal(total, kept)


def test_float64_goes_to_the_twin():
    inputs, grads = normal(2, 9, 20, seed=1).double(), normal(2, 9, 10, seed=2).double()
    fisher = torch.zeros(10, 20, device="cuda", dtype=torch.float64)
    linear_fisher_(fisher, inputs, grads)
    assert error(fisher, gradients(inputs, grads).square().sum(0)) <= 1e-14


@pytest.mark.parametrize("kernel", KERNELS)
def test_deterministic_mode_gives_equal_bits(kernel):
    # 1152 × 1280: on no GPU do the tiles come out even, so some are shared.
    inputs, grads = (normal(7, 260, size, seed=size, dtype=torch.bfloat16) for size in (1152, 1280))
    seen = []
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(5):
            fisher, total = (torch.zeros(1280, 1152, device="cuda") for _ in range(2))
            with forced(kernel):
                norms, _ = linear_grad_(inputs, grads, fisher=fisher, total=total, norms=True)
            seen.append((fisher, total, norms))
    finally:
        torch.use_deterministic_algorithms(before)
    for later in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], later, strict=True))


def test_runs_in_the_current_stream():
    """The operands are made in a side stream behind a long wait: a kernel elsewhere would read them too early."""
    side = torch.cuda.Stream()
    fisher, blank = torch.zeros(64, 96, device="cuda"), torch.zeros(4, 50, 96, device="cuda", dtype=torch.bfloat16)
    fresh, grads = normal(4, 50, 96, seed=1, dtype=torch.bfloat16), normal(4, 50, 64, seed=2, dtype=torch.bfloat16)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        blank.copy_(fresh)
        linear_fisher_(fisher, blank, grads)
    side.synchronize()
    assert error(fisher, gradients(fresh, grads).square().sum(0)) <= bound(50, fresh, grads)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_runs_on_the_device_of_its_operands():
    inputs, grads = (normal(2, 30, 64, seed=k, dtype=torch.bfloat16, device="cuda:1") for k in (1, 2))
    fisher = torch.zeros(64, 64, device="cuda:1")
    linear_fisher_(fisher, inputs, grads)
    assert torch.cuda.current_device() == 0
    assert error(fisher, gradients(inputs, grads).square().sum(0)) <= bound(30, inputs, grads)


def test_under_cuda_graphs():
    inputs, grads = normal(3, 64, 256, seed=1, dtype=torch.bfloat16), normal(3, 64, 512, seed=2, dtype=torch.bfloat16)
    fisher = torch.zeros(512, 256, device="cuda")
    linear_fisher_(fisher, inputs, grads)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        linear_fisher_(fisher, inputs, grads)
    fisher.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert error(fisher, gradients(inputs, grads).square().sum(0)) <= bound(64, inputs, grads)


def test_opcheck():
    inputs, grads = normal(2, 9, 24, seed=1), normal(2, 9, 16, seed=2)
    fisher, directions = torch.zeros(16, 24, device="cuda"), normal(1, 16, 24, seed=3)
    wanted = {"fisher": fisher, "directions": directions, "norms": True}
    opcheck(torch.ops.encore.linear_grad_.default, (inputs, grads), wanted, atol=1e-3, rtol=1e-3)
    opcheck(torch.ops.encore.linear_fisher_.default, (fisher, inputs, grads), atol=1e-3, rtol=1e-3)


def test_wrong_arguments_are_refused():
    inputs, grads = normal(2, 9, 24, seed=1), normal(2, 9, 16, seed=2)
    with pytest.raises(ValueError, match="fisher"):
        linear_fisher_(torch.zeros(16, 24), inputs, grads)
    with forced("sm70"), pytest.raises(RuntimeError, match="ENCORE_CUDA_KERNEL"):
        linear_fisher_(torch.zeros(16, 24, device="cuda"), inputs, grads)
