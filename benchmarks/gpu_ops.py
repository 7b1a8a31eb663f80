"""Single ops on a GPU over MusicGen's shapes: `python benchmarks/gpu_ops.py [--out FILE] [--dry-run]`; see gpu.sh.

A row is a layer's I × O with N samples of T positions, in bfloat16. Beside `linear_grad_`: `gemm`, the step's own
weight gradient (one product over all rows: the same arithmetic, cuBLAS's rate), and what one would write without a
kernel: G_n by bmm in bfloat16 or float32, squared and summed. Calls are made in turns; a time is a median of turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from encore.ops import native
from encore.ops.linear_grad import linear_grad_

HIDDEN = {"small": 1024, "medium": 1536, "large": 2048}


def shapes(dry: bool) -> list[tuple[str, int, int, int, int]]:
    """(model, N, T, I, O), the ones that decide first: time may run out."""
    if dry:
        return [("tiny", 2, 16, 64, 96), ("tiny", 2, 5, 96, 64)]
    return [
        (model, n, t, size * wide_in, size * wide_out)
        for n in (8, 32)
        for t in (250, 1500)
        for model, size in HIDDEN.items()
        for wide_in, wide_out in ((1, 1), (1, 4), (4, 1))
    ]


def product(grads: torch.Tensor, inputs: torch.Tensor, wide: bool) -> torch.Tensor:
    """All G_n, [N, O, I], in the operands' type or in float32."""
    if not wide:
        return torch.bmm(grads.mT, inputs)
    if inputs.is_cuda:
        return torch.bmm(grads.mT, inputs, out_dtype=torch.float32)
    return torch.bmm(grads.mT.float(), inputs.float())


def calls(n: int, t: int, i: int, o: int, device: str) -> dict[str, Callable[[], Any]]:
    inputs = torch.randn(n, t, i, device=device, dtype=torch.bfloat16)
    grads = torch.randn(n, t, o, device=device, dtype=torch.bfloat16)
    fisher, total = torch.zeros(o, i, device=device), torch.zeros(o, i, device=device)

    def square_sum(wide: bool) -> None:
        fisher.add_(product(grads, inputs, wide).square_().sum(0, dtype=torch.float32))

    def forced(kernel: str) -> None:
        os.environ["ENCORE_CUDA_KERNEL"] = kernel
        linear_grad_(inputs, grads, fisher=fisher)
        os.environ["ENCORE_CUDA_KERNEL"] = ""

    def deterministic() -> None:
        torch.use_deterministic_algorithms(True)
        linear_grad_(inputs, grads, fisher=fisher)
        torch.use_deterministic_algorithms(False)

    timed: dict[str, Callable[[], Any]] = {
        "gemm": lambda: torch.mm(grads.flatten(0, 1).T, inputs.flatten(0, 1)),
        "fisher": lambda: linear_grad_(inputs, grads, fisher=fisher),
        "fisher+norms": lambda: linear_grad_(inputs, grads, fisher=fisher, norms=True),
        "all": lambda: linear_grad_(inputs, grads, fisher=fisher, total=total, norms=True),
        "deterministic": deterministic,
        "bmm16": lambda: square_sum(wide=False),
        "bmm32": lambda: square_sum(wide=True),
    }
    if device == "cuda" and n == 8:
        if torch.cuda.get_device_capability() == (9, 0):
            timed["sm90-single"] = lambda: forced("sm90-single")
        timed["sm80"] = lambda: forced("sm80")
        fp32_inputs, fp32_grads = inputs.float(), grads.float()
        timed["fp32"] = lambda: linear_grad_(fp32_inputs, fp32_grads, fisher=fisher)
    return timed


def milliseconds(call: Callable[[], Any], device: str, repeats: int) -> float:
    if device == "cpu":
        begun = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - begun) * 1000 / repeats
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    for _ in range(repeats):
        call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / repeats


def time_in_turns(timed: dict[str, Callable[[], Any]], device: str, turns: int = 7) -> dict[str, float]:
    """Median milliseconds of each; about a second a row."""
    repeats = {}
    for name, call in timed.items():
        call()  # compiles, allocates
        repeats[name] = max(1, min(50, int(10 / max(milliseconds(call, device, 1), 0.01))))
    taken: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(turns):
        for name, call in timed.items():
            taken[name].append(milliseconds(call, device, repeats[name]))
    return {name: statistics.median(times) for name, times in taken.items()}


def peak(device: str, dry: bool) -> float:
    """TFLOP/s of a large square bfloat16 product."""
    size = 128 if dry else 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / time_in_turns({"mm": lambda: a @ b}, device)["mm"] / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON lines")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU: that the script runs")
    parser.add_argument("--seconds", type=float, default=110, help="no row is begun later")
    options = parser.parse_args()
    device = "cpu" if options.dry_run else "cuda"
    begun = time.monotonic()
    found = native.find()
    highest = peak(device, options.dry_run)
    info: dict[str, Any] = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "peak": highest}
    info |= {"torch": torch.__version__, "library": found.module.build_info() if found.module else found.why}
    lines = [json.dumps(info)]
    print(f"{info['device']}: {highest:.0f} TFLOP/s, torch {torch.__version__}; times in µs")
    head = ("gemm", "fisher", "all", "bmm16", "bmm32")
    print("| model | N | T | I × O | " + " | ".join(head) + " | % of gemm | % of peak | × bmm16 | × bmm32 |")
    print("|---" * (8 + len(head)) + "|")
    for model, n, t, i, o in shapes(options.dry_run):
        if time.monotonic() - begun > options.seconds:
            print(f"not run, out of time: {model} N {n} T {t} {i} × {o}")
            continue
        times = time_in_turns(calls(n, t, i, o, device), device)
        rate = 2 * n * t * i * o / times["fisher"] / 1e9
        row: dict[str, Any] = {"model": model, "N": n, "T": t, "I": i, "O": o, "ms": times, "tflops": rate}
        row |= {"of_gemm": times["gemm"] / times["fisher"], "of_peak": rate / highest}
        row |= {"over_bmm16": times["bmm16"] / times["fisher"], "over_bmm32": times["bmm32"] / times["fisher"]}
        lines.append(json.dumps(row))
        cells = [f"{times[name] * 1000:.0f}" for name in head]
        cells += [f"{100 * row['of_gemm']:.0f}", f"{100 * row['of_peak']:.0f}"]
        cells += [f"{row['over_bmm16']:.2f}", f"{row['over_bmm32']:.2f}"]
        print(f"| {model} | {n} | {t} | {i} × {o} | " + " | ".join(cells) + " |", flush=True)
        if options.out:
            options.out.write_text("\n".join(lines) + "\n")  # each time: a time limit may end this


if __name__ == "__main__":
    main()
