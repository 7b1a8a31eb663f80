"""The op alone beside the batched weight-gradient product: `python benchmarks/linear_grad.py [--threads 1] [--json]`.

References: `bmm` writes every sample's gradient [N, O, I] (torch.bmm of Bᵀ and A), `wgrad` is what a training step does
(one product over all rows, [O, I]). Beside them `linear_grad_` with a Fisher alone, with Fisher, norms and total, and
the pure-torch twin's Fisher. Calls are made in turns, and a ratio is the median over the turns, so that a slow spell of
the machine hits both. With --busy, for a machine with busy neighbours, it is processor time that is taken, and a ratio
is that of the least times. With --json the rows are printed once more as JSON, in the last line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from encore.ops import linear_grad, native

SHAPES = [
    (250, 1024, 1024),
    (1500, 1024, 1024),
    (250, 1024, 4096),
    (1500, 1024, 4096),
    (250, 256, 256),
    (250, 256, 1024),
]
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def calls(n: int, t: int, i: int, o: int, kind: torch.dtype) -> dict[str, Callable[[], Any]]:
    """What is timed, on A [n, t, i] and B [n, t, o] of that type; the references on float32 copies."""
    a, b = torch.randn(n, t, i), torch.randn(n, t, o)
    inputs, grads = a.to(kind), b.to(kind)
    each, summed, fisher, total = torch.empty(n, o, i), torch.empty(o, i), torch.zeros(o, i), torch.zeros(o, i)
    return {
        "bmm": lambda: torch.bmm(b.mT, a, out=each),
        "wgrad": lambda: torch.mm(b.flatten(0, 1).T, a.flatten(0, 1), out=summed),
        "fisher": lambda: linear_grad.linear_grad_(inputs, grads, fisher=fisher),
        "all": lambda: linear_grad.linear_grad_(inputs, grads, fisher=fisher, total=total, norms=True),
        "twin": lambda: torch.ops.encore.linear_grad_twin_(inputs, grads, fisher=fisher),
    }


def measure(shape: tuple[int, ...], n: int, kind: str, seconds: float, busy: bool) -> dict[str, Any]:
    """One row: milliseconds, and ratios to both references."""
    timed = calls(n, *shape, TYPES[kind])
    taken: dict[str, list[float]] = {name: [] for name in timed}
    clock = time.process_time if busy else time.perf_counter
    begun = time.perf_counter()
    while len(taken["bmm"]) < 6 or time.perf_counter() - begun < seconds:
        for name, call in timed.items():
            start = clock()
            call()
            taken[name].append(clock() - start)
    rounds = {name: times[1:] for name, times in taken.items()}  # the first one fills caches
    row: dict[str, Any] = dict(zip(("N", "T", "I", "O"), (n, *shape), strict=True))
    row |= {"type": kind, "pairs": len(rounds["bmm"])}
    row |= {f"{name}_ms": 1000 * (min if busy else statistics.median)(times) for name, times in rounds.items()}
    for name in ("fisher", "all", "twin"):
        for reference in ("bmm", "wgrad"):
            ratios = [a / b for a, b in zip(rounds[name], rounds[reference], strict=True)]
            row[f"{name}/{reference}"] = (
                row[f"{name}_ms"] / row[f"{reference}_ms"] if busy else statistics.median(ratios)
            )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--type", choices=sorted(TYPES), default="float32", help="of the op's inputs")
    parser.add_argument("--shape", action="append", help="T,I,O; may be repeated")
    parser.add_argument("--seconds", type=float, default=20, help="for each shape")
    parser.add_argument("--busy", action="store_true", help="take processor time, and the least")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    library = native.find()
    kernel = library.module.cpu_isa() if library.module is not None else f"pure torch ({library.why})"
    load = os.getloadavg()[0]
    print(f"kernel {kernel}, {options.threads} threads, load {load:.1f} at the start")
    shapes = [tuple(int(size) for size in text.split(",")) for text in options.shape or []] or SHAPES
    rows = []
    print(f"{'N, T, I, O':22}{'bmm ms':>9}{'fisher/bmm':>12}{'/wgrad':>8}{'all/bmm':>9}{'/wgrad':>8}{'twin/bmm':>10}")
    for shape in shapes:
        row = measure(shape, options.samples, options.type, options.seconds, options.busy)
        rows.append({"kernel": kernel, "threads": options.threads, **row})
        sizes = ", ".join(str(row[key]) for key in "NTIO")
        print(
            f"{sizes:22}{row['bmm_ms']:9.1f}{row['fisher/bmm']:12.2f}{row['fisher/wgrad']:8.2f}{row['all/bmm']:9.2f}"
            f"{row['all/wgrad']:8.2f}{row['twin/bmm']:10.2f}",
            flush=True,
        )
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
