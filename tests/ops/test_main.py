"""`python -m encore.ops`."""

import json
import os
import subprocess
import sys

import pytest

from encore.ops import __main__ as command
from encore.ops import native

LIBRARY = native.find(build=False).module
OPS = {"linear_grad_", "linear_fisher_", "linear_sq_norm", "linear_dot", "linear_weighted_sum_"}
PLAIN = {"vector_grad_", "embedding_grad_"}


@pytest.mark.skipif(LIBRARY is None, reason="no library")
def test_kernels_and_times(capsys, monkeypatch):
    monkeypatch.setenv("ENCORE_CPU_ISA", "portable")
    command.main(["--json", "--shape", "2,16,8,8"])
    found = json.loads(capsys.readouterr().out)
    assert found["library"].startswith("built ahead of time, with torch ")
    assert found["cpu"] == "portable, as ENCORE_CPU_ISA asks"
    rows = {row["op"]: row for row in found["ops"] if row["device"] == "cpu"}
    assert set(rows) == OPS | PLAIN
    assert rows["linear_grad_"]["kernel"] == rows["linear_fisher_"]["kernel"] == "linear_grad_ portable"
    assert rows["linear_weighted_sum_"]["kernel"] == "one matrix product"
    assert all(rows[name]["ms"] > 0 < rows[name]["twin_ms"] for name in OPS)
    for name in PLAIN:
        assert (rows[name]["kernel"], rows[name]["twin_ms"]) == ("pure torch", None)
        assert rows[name]["ms"] > 0
    assert rows["linear_dot"]["gain"] == pytest.approx(rows["linear_dot"]["twin_ms"] / rows["linear_dot"]["ms"])


@pytest.mark.parametrize(("shape", "kernel"), [("1,2,64,64", "Gram matrices"), ("1,64,4,4", "linear_grad_ ")])
@pytest.mark.skipif(LIBRARY is None, reason="no library")
def test_norms_say_which_way(shape, kernel):
    rows = {row["op"]: row for row in command.examine([int(size) for size in shape.split(",")])["ops"]}
    assert rows["linear_sq_norm"]["kernel"].startswith(kernel)


def test_table_without_the_library():
    environment = {**os.environ, "ENCORE_NATIVE": "0"}
    ran = subprocess.run(
        [sys.executable, "-m", "encore.ops", "--shape", "2,4,8,8"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = ran.stdout.splitlines()
    assert lines[0] == "library: none: ENCORE_NATIVE=0 switches it off; PyTorch is used instead"
    assert lines[1] == "CPU: pure torch, for want of the library"
    (grad,) = [line.split() for line in lines if line.startswith("linear_grad_")]
    assert grad[:4] == ["linear_grad_", "cpu", "pure", "torch"]


@pytest.mark.parametrize("shape", ["nonsense", "1,2", "1,2,3,4,5", "0,1,1,1", "2,-5,4,4", "", "1,,2,3"])
def test_a_shape_that_is_none_is_refused(shape, capsys):
    with pytest.raises(SystemExit) as refused:
        command.main([f"--shape={shape}"])
    assert refused.value.code == 2
    assert f"{shape!r} is not four sizes N,T,I,O of 1 or more" in capsys.readouterr().err


@pytest.mark.skipif(LIBRARY is None or LIBRARY.cpu_isa() != "amx", reason="no library, or no amx in this processor")
@pytest.mark.parametrize(
    ("shape", "isa"), [([1, 8, 64, 64], "avx512"), ([1, 64, 16, 64], "avx512"), ([1, 64, 64, 64], "amx")]
)
def test_small_products_are_left_to_smaller_tiles(shape, isa):
    rows = {row["op"]: row for row in command.examine(shape)["ops"]}
    assert rows["linear_grad_"]["kernel"] == f"linear_grad_ {isa}"
