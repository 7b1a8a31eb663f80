"""`python -m encore.ops`: which kernel each op would use here, and why; and what it gains over its twin."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import encore.ops
from encore.ops import native

TWIN = "pure torch"


class Case(NamedTuple):
    """A call of an op, and of its twin where it is another; the kernel is named where the op itself has none."""

    op: Callable[[], Any]
    twin: Callable[[], Any] | None
    kernel: str = ""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m encore.ops", description=__doc__)
    parser.add_argument("--shape", type=_shape, default="8,250,256,256", help="N,T,I,O of what is timed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    report = examine(options.shape)
    if options.json:
        print(json.dumps(report))
        return
    print(f"library: {report['library']}\nCPU: {report['cpu']}\nCUDA: {report['cuda']}")
    print(f"N, T, I, O = {', '.join(map(str, options.shape))}; {torch.get_num_threads()} CPU threads\n")
    print(f"{'op':24}{'device':8}{'kernel':28}{'ms':>9}{'twin ms':>9}{'gain':>7}")
    for row in report["ops"]:
        times = "".join(
            f"{row[key]:{width}.2f}" if row[key] is not None else f"{'-':>{width}}"
            for key, width in (("ms", 9), ("twin_ms", 9), ("gain", 7))
        )
        print(f"{row['op']:24}{row['device']:8}{row['kernel']:28}{times}")


def _shape(text: str) -> list[int]:
    sizes = text.split(",")
    if len(sizes) != 4 or not all(size.strip().isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not four sizes N,T,I,O of 1 or more, such as 8,250,256,256")
    return [int(size) for size in sizes]


def examine(shape: list[int]) -> dict[str, Any]:
    """Everything the command shows, with the ops timed on inputs of `shape` [N, T, I, O]."""
    for part in pkgutil.iter_modules(encore.ops.__path__):
        if not part.name.startswith("_"):
            importlib.import_module(f"encore.ops.{part.name}")  # where it has ops, it registers them
    module, why, how = native.find()
    names = sorted(
        name.removeprefix("encore::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("encore::") and not name.endswith(("_twin_", "::deterministic"))
    )
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return {
        "library": f"built {how}, {_built(module.build_info())}"
        if module is not None
        else f"none: {why}; PyTorch is used instead",
        "cpu": _cpu(module),
        "cuda": _cuda(module),
        "shape": dict(zip(("N", "T", "I", "O"), shape, strict=True)),
        "ops": [row for device in devices for row in _rows(names, device, module, shape)],
    }


def _built(info: dict[str, Any]) -> str:
    return f"with torch {info['torch']}, {info['compiler']} {info['flags']}"


def _cpu(module: Any) -> str:
    if module is None:
        return f"{TWIN}, for want of the library"
    isa = module.cpu_isa()
    forced = os.environ.get("ENCORE_CPU_ISA")
    return f"{isa}, as ENCORE_CPU_ISA asks" if forced else f"{isa}, the best that this processor has"


def _cuda(module: Any) -> str:
    if not torch.cuda.is_available():
        return "none: " + ("no device" if torch.version.cuda else "this torch was built without CUDA")
    name = torch.cuda.get_device_name()
    if module is None:
        return f"{name}, {TWIN} for want of the library"
    archs = module.build_info()["cuda_archs"]
    return f"{name}, kernels for {archs}" if archs else f"{name}, {TWIN}: the library was built without CUDA kernels"


def _rows(names: list[str], device: str, module: Any, shape: list[int]) -> list[dict[str, Any]]:
    isa = module.cpu_isa(*shape[1:]) if module is not None and device == "cpu" else device

    def kernel(name: str) -> str:
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"encore::{name}", device.upper())
        return f"{name} {isa}" if has_kernel else TWIN

    cases = _cases(device, kernel("linear_grad_"), shape)
    rows: list[dict[str, Any]] = []
    for name in names:
        row: dict[str, Any] = {"op": name, "device": device, "kernel": kernel(name)}
        row |= {"ms": None, "twin_ms": None, "gain": None}
        if name in cases:
            case = cases[name]
            ms, *twin_ms = (1000 * seconds for seconds in _time(*filter(None, (case.op, case.twin))))
            row |= {"kernel": case.kernel or row["kernel"], "ms": ms}
            if twin_ms:
                row |= {"twin_ms": twin_ms[0], "gain": twin_ms[0] / ms}
        rows.append(row)
    return rows


def _cases(device: str, grad: str, shape: list[int]) -> dict[str, Case]:
    """A call of each op; `grad` is the kernel of `linear_grad_`."""
    count, length, columns, rows = shape
    ops = torch.ops.encore
    inputs, grads = torch.randn(count, length, columns, device=device), torch.randn(count, length, rows, device=device)
    fisher, total = (torch.zeros(rows, columns, device=device) for _ in range(2))
    directions, weight = torch.randn(1, rows, columns, device=device), torch.rand(count, device=device)

    def twin(**wanted: Any) -> Callable[[], tuple[Tensor, Tensor]]:
        return lambda: ops.linear_grad_twin_(inputs, grads, **wanted)

    indices = torch.randint(rows, (count, length), device=device)
    everything: dict[str, Any] = {"fisher": fisher, "total": total, "directions": directions, "norms": True}
    gram = length * (columns + rows) < columns * rows
    return {
        "linear_grad_": Case(lambda: ops.linear_grad_(inputs, grads, **everything), twin(**everything)),
        "linear_fisher_": Case(lambda: ops.linear_fisher_(fisher, inputs, grads), twin(fisher=fisher), grad),
        "linear_sq_norm": Case(
            lambda: ops.linear_sq_norm(inputs, grads), twin(norms=True), "Gram matrices" if gram else grad
        ),
        "linear_dot": Case(lambda: ops.linear_dot(inputs, grads, directions), twin(directions=directions), grad),
        "linear_weighted_sum_": Case(
            lambda: ops.linear_weighted_sum_(total, inputs, grads, weight),
            twin(total=total, weight=weight),
            "one matrix product",
        ),
        "vector_grad_": Case(lambda: ops.vector_grad_(grads[:, 0], fisher=fisher[:, 0], norms=True), None),
        "embedding_grad_": Case(lambda: ops.embedding_grad_(indices, inputs, rows, fisher=fisher, norms=True), None),
    }


def _time(*calls: Callable[[], Any], turns: int = 25) -> list[float]:
    """The median seconds of each, taken in turns so that a slow spell of the machine hits them alike."""
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(turns + 1):
        for call, taken in zip(calls, seconds, strict=True):
            begun = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn > 0:  # the first fills caches
                taken.append(time.perf_counter() - begun)
    return [statistics.median(taken) for taken in seconds]


if __name__ == "__main__":
    main()
