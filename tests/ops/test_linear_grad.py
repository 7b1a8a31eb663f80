"""Every kernel of linear_grad, and its twin, against float64 per-sample gradients that are stored whole."""

from __future__ import annotations

import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.ops.float64 import error, gradients, normal
from torch import Tensor
from torch.library import opcheck

from encore.ops import native
from encore.ops.linear_grad import (
    linear_dot,
    linear_fisher_,
    linear_grad_,
    linear_sq_norm,
    linear_weighted_sum_,
)

MODULE = native.find(build=False).module
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAN_OF_LOW_BITS = torch.tensor(0x7F800001, dtype=torch.int32).view(torch.float32)  # its upper half is infinity's
SHAPES = [(3, 250, 70, 45), (2, 700, 33, 100), (8, 1, 16, 6), (1, 37, 129, 1), (5, 3, 1, 29), (2, 513, 32, 14)]


def has(isa: str) -> bool:
    with mock.patch.dict(os.environ, ENCORE_CPU_ISA=isa):
        try:
            return MODULE is not None and MODULE.cpu_isa() == isa
        except ValueError:
            return False


def kernel_param(isa: str):
    missing = not has(isa)
    return pytest.param(isa, marks=pytest.mark.skipif(missing, reason=f"no library, or no {isa} in this processor"))


KERNELS = ["twin", *(kernel_param(isa) for isa in ("portable", "avx2", "avx512", "amx"))]
every_kernel = pytest.mark.parametrize("kernel", KERNELS)


def run(kernel: str, inputs: Tensor, grads: Tensor, **wanted) -> tuple[Tensor, Tensor]:
    """`linear_grad_` by that kernel."""
    if kernel == "twin":
        return torch.ops.encore.linear_grad_twin_(inputs, grads, **wanted)
    with mock.patch.dict(os.environ, ENCORE_CPU_ISA=kernel):
        return linear_grad_(inputs, grads, **wanted)


def bound(length: int, *operands: Tensor) -> float:
    """What the issue allows."""
    narrow = any(operand.dtype in (torch.bfloat16, torch.float16) for operand in operands)
    return 2e-6 * (max(length, 1) ** 0.5 if narrow else 1)


# ------------------------------------------------------------------------------------------------- against float64


@every_kernel
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("types", [("float32",) * 2, ("bfloat16",) * 2, ("float16",) * 2, ("float32", "bfloat16")])
def test_every_reduction_against_float64(kernel, shape, types):
    count, length, columns, rows = shape
    inputs = normal(count, length, columns, seed=1, dtype=TYPES[types[0]])
    grads = normal(count, length, rows, seed=2, dtype=TYPES[types[1]])
    scale, weight = normal(count, seed=3).abs(), normal(count, seed=4)
    directions = normal(3, rows, columns, seed=5)
    fisher, total = normal(rows, columns, seed=6).abs(), normal(rows, columns, seed=7)
    whole = gradients(inputs, grads)
    want_fisher = fisher.double() + torch.einsum("n,noi->oi", scale.double(), whole.square())
    want_total = total.double() + torch.einsum("n,noi->oi", weight.double(), whole)

    sq_norms, dots = run(
        kernel, inputs, grads,
        fisher=fisher, scale=scale, total=total, weight=weight, directions=directions, norms=True,
    )  # fmt: skip

    allowed = bound(length, inputs, grads)
    assert sq_norms.dtype == dots.dtype == torch.float32
    assert error(fisher, want_fisher) <= allowed
    assert error(total, want_total) <= allowed
    assert error(sq_norms, whole.square().sum((1, 2))) <= allowed
    # A dot product may cancel to nothing, so its error is taken against the norms of its factors.
    size = whole.flatten(1).norm(dim=1)[:, None] * directions.double().flatten(1).norm(dim=1)
    assert error(size + dots - torch.einsum("noi,moi->nm", whole, directions.double()), size) <= allowed


@every_kernel
def test_long_sequences_do_not_lose_digits(kernel):
    """Summed one after another, 20 000 positive products would be off by more than the bound."""
    inputs, grads = normal(1, 20000, 40, seed=1).abs(), normal(1, 20000, 7, seed=2).abs()
    fisher = torch.zeros(7, 40)
    run(kernel, inputs, grads, fisher=fisher)
    assert error(fisher, gradients(inputs, grads)[0].square()) <= 2e-6


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers [N, T, C], otherwise in memory."""
    if layout == "rows of a wider matrix":
        wide = torch.full((*x.shape[:2], x.shape[2] + 5), torch.nan, dtype=x.dtype)
        wide[..., 3 : 3 + x.shape[2]] = x
        return wide[..., 3 : 3 + x.shape[2]]
    if layout == "time first":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "channels first":
        return x.mT.contiguous().mT
    if layout == "every other column":
        return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]
    return x


LAYOUTS = ["contiguous", "rows of a wider matrix", "time first", "channels first", "every other column"]


@every_kernel
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_type_and_layout(kernel, data):
    count, length = data.draw(st.integers(0, 4)), data.draw(st.sampled_from([0, 1, 2, 3, 17, 64, 257, 600]))
    columns, rows = data.draw(st.integers(0, 70)), data.draw(st.integers(0, 110))
    seed = data.draw(st.integers(0, 2**31))
    # Every column and row of G_n has a sign of its own, but no sum in it cancels: the bound then holds for any shape.
    signs_i, signs_o = normal(columns, seed=seed).sign(), normal(rows, seed=seed + 1).sign()
    operands = []
    for signs in (signs_i, signs_o):
        size = normal(count, length, len(signs), seed=seed + 2).abs() + 0.1
        kind = TYPES[data.draw(st.sampled_from(sorted(TYPES)))]
        operands.append(laid_out((size * signs).to(kind), data.draw(st.sampled_from(LAYOUTS))))
    inputs, grads = operands
    if count and data.draw(st.booleans()):
        inputs = inputs[:1].expand_as(inputs)
    factors = [None, normal(count, seed=seed + 3).abs() + 0.1]
    scale, weight = data.draw(st.sampled_from(factors)), data.draw(st.sampled_from(factors))
    directions = None
    if data.draw(st.booleans()):
        directions = (normal(data.draw(st.integers(0, 3)), rows, columns).abs() + 0.1) * signs_o[:, None] * signs_i
        directions = directions.to(TYPES[data.draw(st.sampled_from(sorted(TYPES)))])
    guarded = [torch.full((rows + 2, columns + 5), -7.0) for _ in range(2)]
    fisher, total = (matrix[1:-1, 2 : 2 + columns] for matrix in guarded)
    fisher.zero_()
    total.zero_()
    norms = data.draw(st.booleans())

    sq_norms, dots = run(
        kernel, inputs, grads,
        fisher=fisher, scale=scale, total=total, weight=weight, directions=directions, norms=norms,
    )  # fmt: skip

    whole, allowed = gradients(inputs, grads), bound(length, inputs, grads)
    ones = torch.ones(count, dtype=torch.float64)
    assert error(fisher, torch.einsum("n,noi->oi", ones if scale is None else scale.double(), whole**2)) <= allowed
    assert error(total, torch.einsum("n,noi->oi", ones if weight is None else weight.double(), whole)) <= allowed
    assert sq_norms.shape == ((count,) if norms else (0,))
    if norms:
        assert error(sq_norms, whole.square().sum((1, 2))) <= allowed
    assert dots.shape == (count, 0 if directions is None else len(directions))
    if directions is not None:
        assert error(dots, torch.einsum("noi,moi->nm", whole, directions.double())) <= allowed
    for matrix in guarded:
        matrix[1:-1, 2 : 2 + columns] = -7.0
        assert (matrix == -7.0).all(), "what lies beside the result was written to"


# ------------------------------------------------------------------------------------------------------- identities


@every_kernel
def test_identities(kernel):
    inputs, grads = normal(5, 40, 50, seed=1), normal(5, 40, 31, seed=2)
    fisher, total = torch.zeros(31, 50), torch.zeros(31, 50)
    sq_norms, dots = run(kernel, inputs, grads, fisher=fisher, total=total, norms=True, directions=normal(1, 31, 50))
    assert float(fisher.double().sum()) == pytest.approx(float(sq_norms.double().sum()), rel=1e-6)
    assert float((total.double() * normal(1, 31, 50)).sum()) == pytest.approx(float(dots.double().sum()), rel=1e-4)

    order = torch.tensor([3, 0, 4, 2, 1])
    permuted = torch.zeros(31, 50)
    permuted_norms, _ = run(kernel, inputs[order], grads[order], fisher=permuted, norms=True)
    assert error(permuted, fisher.double()) <= 1e-6
    assert error(permuted_norms, sq_norms[order].double()) <= 1e-6

    louder = torch.zeros(31, 50)
    run(kernel, inputs, 4 * grads, fisher=louder)
    assert torch.equal(louder, 16 * fisher), "a power of two changes no rounding"

    one, gradient = torch.zeros(31, 50), torch.zeros(31, 50)
    run(kernel, inputs[:1], grads[:1], fisher=one, total=gradient)
    assert torch.equal(one, gradient.square())


@every_kernel
def test_total_is_the_gradient_that_autograd_gives(kernel):
    layer = torch.nn.Linear(50, 31, bias=False)
    inputs, grads = normal(5, 40, 50, seed=1), normal(5, 40, 31, seed=2)
    layer(inputs).backward(grads)
    total = torch.zeros(31, 50)
    run(kernel, inputs, grads, total=total)
    assert error(total, layer.weight.grad.double()) <= 2e-6


@every_kernel
def test_nothing_to_sum(kernel):
    for count, length, columns, rows in [(2, 0, 3, 4), (0, 5, 3, 4), (2, 5, 0, 4), (2, 5, 3, 0)]:
        fisher, total = torch.ones(rows, columns), torch.ones(rows, columns)
        inputs, grads = torch.ones(count, length, columns), torch.ones(count, length, rows)
        sq_norms, dots = run(
            kernel, inputs, grads, fisher=fisher, total=total, norms=True, directions=torch.ones(2, rows, columns)
        )
        assert torch.equal(sq_norms, torch.zeros(count))
        assert torch.equal(dots, torch.zeros(count, 2))
        assert (fisher == 1).all()
        assert (total == 1).all()


@every_kernel
def test_results_are_written_whole(kernel):
    """Fresh memory is filled with NaN here: what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    try:
        for shape in [*SHAPES, (3, 0, 5, 5)]:
            count, length, columns, rows = shape
            inputs, grads = normal(count, length, columns), normal(count, length, rows)
            sq_norms, dots = run(kernel, inputs, grads, norms=True, directions=normal(2, rows, columns))
            assert sq_norms.isfinite().all()
            assert dots.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


@every_kernel
def test_accumulates_in_place(kernel):
    inputs, grads = normal(4, 30, 20, seed=1), normal(4, 30, 10, seed=2)
    fisher, total = torch.zeros(10, 20), torch.zeros(10, 20)
    for part in (slice(0, 1), slice(1, 4)):
        run(kernel, inputs[part], grads[part], fisher=fisher, total=total)
    whole = gradients(inputs, grads)
    assert error(fisher, whole.square().sum(0)) <= 2e-6
    assert error(total, whole.sum(0)) <= 2e-6


@every_kernel
def test_infinity_and_nan_stay_where_they_are(kernel):
    inputs, grads = normal(2, 9, 40, seed=1), normal(2, 9, 20, seed=2)
    inputs[1, 4, 7], grads[1, 5, 3] = torch.inf, torch.nan
    fisher = torch.zeros(20, 40)
    sq_norms, _ = run(kernel, inputs, grads, fisher=fisher, norms=True)
    touched = torch.zeros(20, 40, dtype=torch.bool)
    touched[3], touched[:, 7] = True, True
    assert torch.equal(~fisher.isfinite(), touched)
    assert sq_norms[0].isfinite()
    assert not sq_norms[1].isfinite()


@every_kernel
def test_every_half_precision_number_is_read_right(kernel):
    """Subnormals, infinities and NaN too: all 65 536 patterns of each 16-bit type."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for kind in (torch.float16, torch.bfloat16):
        inputs, total = bits.view(kind).view(1, 1, -1), torch.zeros(1, 2**16)
        run(kernel, inputs, torch.ones(1, 1, 1), total=total)
        want = inputs[0].float()
        if kernel == "amx":  # it splits numbers, and infinity less infinity is NaN
            want[want.isinf()] = torch.nan
        assert torch.equal(total.nan_to_num(nan=0.5), want.nan_to_num(nan=0.5))


@every_kernel
@pytest.mark.parametrize("sizes", [(1e-25, 1e-3), (1e-25, 1e15), (1e15, 1e3), (1e-38, 1e30), (1e37, 1e-37)], ids=str)
@pytest.mark.parametrize("length", [3, 300])
def test_tiny_and_huge_numbers_keep_their_digits(kernel, sizes, length):
    """In one call each column of a factor has a size of its own, from a thousandth of `sizes` to all of it."""
    inputs, grads = (
        normal(2, length, count, seed=count) * torch.logspace(-3, 0, count) * size
        for count, size in zip((70, 45), sizes, strict=True)
    )
    total, whole = torch.zeros(45, 70), gradients(inputs, grads).sum(0)
    run(kernel, inputs, grads, total=total)
    for found, want in ((total, whole), (total.T, whole.T)):
        each = (found.double() - want).norm(dim=1) / want.norm(dim=1)
        assert float(each.max()) <= 2e-6


@every_kernel
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan, NAN_OF_LOW_BITS])
@pytest.mark.parametrize("types", [("float32", "float32"), ("float32", "bfloat16"), ("float16", "float32")], ids=str)
def test_nothing_that_is_not_finite_becomes_finite(kernel, bad, types):
    """Whatever it is multiplied with: numbers of few digits, and zero."""
    inputs = normal(2, 140, 40, seed=1, dtype=TYPES[types[0]])
    grads = torch.randint(-2, 3, (2, 140, 36), generator=torch.Generator().manual_seed(2)).to(TYPES[types[1]])
    inputs[0, 130, 5] = bad
    grads[0, 130, 7] = 0
    fisher, total = torch.zeros(36, 40), torch.zeros(36, 40)
    sq_norms, _ = run(kernel, inputs, grads, fisher=fisher, total=total, norms=True)
    touched = torch.zeros(36, 40, dtype=torch.bool)
    touched[:, 5] = True
    assert torch.equal(~fisher.isfinite(), touched)
    assert torch.equal(~total.isfinite(), touched)
    assert sq_norms.isfinite().tolist() == [False, True]


# --------------------------------------------------------------------------------------- what no kernel takes; threads


@pytest.mark.parametrize("wide", ["inputs", "grads", "fisher", "directions"])
def test_float64_is_computed_as_float64(wide):
    operands = {"inputs": normal(2, 30, 20, seed=1), "grads": normal(2, 30, 10, seed=2)}
    asked = {"fisher": torch.zeros(10, 20), "directions": normal(2, 10, 20, seed=3)}
    whole = gradients(**operands)
    for given_ in (operands, asked):
        if wide in given_:
            given_[wide] = given_[wide].double()
    sq_norms, dots = linear_grad_(**operands, **asked, norms=True)
    assert sq_norms.dtype == dots.dtype == (torch.float64 if wide in operands else torch.float32)
    assert error(asked["fisher"], whole.square().sum(0)) <= 2e-6
    assert error(sq_norms, whole.square().sum((1, 2))) <= (1e-14 if wide in operands else 2e-6)
    assert error(dots, torch.einsum("noi,moi->nm", whole, asked["directions"].double())) <= 2e-6


@every_kernel
def test_results_of_another_layout(kernel):
    inputs, grads = normal(2, 30, 20, seed=1), normal(2, 30, 10, seed=2)
    fisher, total = torch.zeros(20, 10).T, torch.zeros(10, 40)[:, ::2]
    run(kernel, inputs, grads, fisher=fisher, total=total)
    assert error(fisher, gradients(inputs, grads).square().sum(0)) <= 2e-6
    assert error(total, gradients(inputs, grads).sum(0)) <= 2e-6


@every_kernel
@pytest.mark.parametrize("shape", [(3, 250, 300, 130), (40, 5, 64, 64)], ids=str)
def test_equal_calls_give_equal_bits(kernel, shape):
    """With another number of threads too, for the kernels."""
    count, length, columns, rows = shape
    inputs, grads = normal(count, length, columns, seed=1), normal(count, length, rows, seed=2)
    directions = normal(2, rows, columns, seed=3)
    found = []
    for threads in (1, 1) if kernel == "twin" else (1, 1, 2, 3):
        torch.set_num_threads(threads)
        fisher, total = torch.zeros(rows, columns), torch.zeros(rows, columns)
        found.append(
            (*run(kernel, inputs, grads, fisher=fisher, total=total, norms=True, directions=directions), fisher, total)
        )
    torch.set_num_threads(1)
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@pytest.mark.slow
@every_kernel
def test_memory_does_not_grow_with_the_samples(kernel):
    code = (
        "import resource, torch\nfrom encore.ops.linear_grad import linear_grad_\nimport sys\n"
        "a, b = torch.randn(2, 16, 1024), torch.randn(2, 16, 1024)\nfisher = torch.zeros(1024, 1024)\n"
        "op = torch.ops.encore.linear_grad_twin_ if sys.argv[1] == 'twin' else linear_grad_\n"
        "op(a, b, fisher=fisher, norms=True)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "a, b = (x[:1].expand(512, -1, -1) for x in (a, b))\nbefore = peak()\n"
        "op(a, b, fisher=fisher, norms=True)\nprint(peak() - before)"
    )
    environment = {**os.environ, "ENCORE_CPU_ISA": "portable" if kernel == "twin" else kernel}
    ran = subprocess.run(
        [sys.executable, "-c", code, kernel], env=environment, capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) < 20, "MB, where the gradients of 512 samples take 2 048"


@pytest.mark.skipif(MODULE is None, reason="no library")
def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("ENCORE_CPU_ISA", "mmx")
    with pytest.raises(ValueError, match="amx, avx512, avx2 or portable is needed"):
        MODULE.cpu_isa()
    with pytest.raises(RuntimeError, match="amx, avx512, avx2 or portable is needed"):
        linear_grad_(torch.ones(1, 1, 1), torch.ones(1, 1, 1), norms=True)


# ---------------------------------------------------------------------------------------------- the ops made of it


@pytest.mark.parametrize("kind", [*TYPES.values(), torch.float64], ids=str)
def test_the_named_ops(kind):
    inputs, grads = normal(4, 60, 30, seed=1, dtype=kind), normal(4, 60, 25, seed=2, dtype=kind)
    factors, directions = normal(4, seed=3).abs(), normal(2, 25, 30, seed=4)
    whole, allowed = gradients(inputs, grads), bound(60, inputs)
    fisher, total, plain = torch.ones(25, 30), torch.ones(25, 30), torch.ones(25, 30)
    linear_fisher_(fisher, inputs, grads, factors)
    linear_weighted_sum_(total, inputs, grads, factors)
    linear_weighted_sum_(plain, inputs, grads)
    assert error(fisher, 1 + torch.einsum("n,noi->oi", factors.double(), whole.square())) <= allowed
    assert error(total, 1 + torch.einsum("n,noi->oi", factors.double(), whole)) <= allowed
    assert error(plain, 1 + whole.sum(0)) <= allowed
    assert error(linear_sq_norm(inputs, grads), whole.square().sum((1, 2))) <= allowed
    dots = torch.einsum("noi,moi->nm", whole, directions.double())
    assert error(linear_dot(inputs, grads, directions), dots) <= allowed


@pytest.mark.parametrize(
    "shape", [(12, 7, 16, 16), (3, 40, 16, 16), (5, 1, 64, 9), (2, 0, 4, 4), (0, 3, 4, 4)], ids=str
)
@pytest.mark.parametrize("kind", [*TYPES.values(), torch.float64], ids=str)
def test_norms_by_gram_matrices_and_by_tiles_agree(shape, kind):
    """Of these shapes the first is computed in three parts, the second by tiles, the third at once."""
    count, length, columns, rows = shape
    inputs, grads = normal(count, length, columns, seed=1, dtype=kind), normal(count, length, rows, seed=2, dtype=kind)
    found = linear_sq_norm(inputs, grads)
    assert error(found, gradients(inputs, grads).square().sum((1, 2))) <= bound(length, inputs)
    assert error(found, linear_grad_(inputs, grads, norms=True)[0].double()) <= 2 * bound(length, inputs)


def test_norms_take_whichever_way_is_cheaper():
    def calls(length: int) -> int:
        with torch.profiler.profile() as profile:
            linear_sq_norm(torch.ones(1, length, 64), torch.ones(1, length, 64))
        return sum(event.count for event in profile.key_averages() if event.key == "encore::linear_grad_")

    assert calls(8) == 0
    assert calls(100) == 1


# ------------------------------------------------------------------------------------------------ what torch asks for


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(kind):
    linear_grad_(torch.ones(1, 1, 1), torch.ones(1, 1, 1))  # so that the library is loaded
    ops = torch.ops.encore
    inputs, grads = normal(3, 7, 5, dtype=kind), normal(3, 7, 4, dtype=kind)
    factors, directions = normal(3), normal(2, 4, 5)

    def matrix() -> Tensor:
        return torch.zeros(4, 5)

    everything = {
        "fisher": matrix(), "scale": factors, "total": matrix(), "weight": factors, "directions": directions,
        "norms": True,
    }  # fmt: skip
    for op in (ops.linear_grad_, ops.linear_grad_twin_):
        for asked in ({}, {"norms": True}, {"fisher": matrix()}, {"total": matrix(), "norms": True}, everything):
            opcheck(op.default, (inputs, grads), asked)
    opcheck(ops.linear_fisher_.default, (matrix(), inputs, grads, factors))
    opcheck(ops.linear_fisher_.default, (matrix(), inputs, grads))
    opcheck(ops.linear_sq_norm.default, (inputs, grads))
    opcheck(ops.linear_sq_norm.default, (inputs[:, :1], grads[:, :1]))
    opcheck(ops.linear_dot.default, (inputs, grads, directions))
    opcheck(ops.linear_weighted_sum_.default, (matrix(), inputs, grads, factors))


WRONG = [
    ({"inputs": torch.ones(3, 7)}, r"inputs \[N, T, I\] and grads \[N, T, O\] are needed"),
    ({"inputs": torch.ones(2, 7, 5)}, r"inputs \[N, T, I\] and grads \[N, T, O\] are needed"),
    ({"inputs": torch.ones(3, 7, 5, dtype=torch.int64)}, "inputs is int64"),
    ({"fisher": torch.zeros(5, 4)}, r"fisher is float32 \[5, 4\] on cpu, where \[4, 5\] on cpu is needed"),
    ({"fisher": torch.zeros(4, 5, dtype=torch.bfloat16)}, "fisher is bfloat16 .* of type float32 or float64"),
    ({"total": torch.zeros(4, 5, device="meta")}, "total is float32 .* on meta"),
    ({"scale": torch.ones(4)}, r"scale is float32 \[4\] on cpu, where \[3\]"),
    ({"weight": torch.ones(3, 1)}, r"weight is float32 \[3, 1\] on cpu, where \[3\]"),
    ({"directions": torch.ones(4, 5)}, r"directions is float32 \[4, 5\] on cpu, where \[M, 4, 5\]"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_arguments_that_do_not_fit_are_named(wrong, message):
    arguments = {"inputs": torch.ones(3, 7, 5), "grads": torch.ones(3, 7, 4), **wrong}
    with pytest.raises(ValueError, match=message):
        linear_grad_(**arguments)
    if "total" not in wrong:  # which decides where the op is sent
        with pytest.raises((ValueError, RuntimeError)):  # by its own name too: no kernel may reach beyond its operands
            torch.ops.encore.linear_grad_(**arguments)


def test_the_named_ops_check_too():
    inputs, grads = torch.ones(3, 7, 5), torch.ones(1, 7, 4)
    matrix = torch.zeros(4, 5)
    for call in (
        lambda: linear_fisher_(matrix, inputs, grads),
        lambda: linear_sq_norm(inputs, grads),
        lambda: linear_dot(inputs, grads, matrix[None]),
        lambda: linear_weighted_sum_(matrix, inputs, grads),
    ):
        with pytest.raises(ValueError, match="are needed"):
            call()
    assert (matrix == 0).all()
