"""One peer of `benchmarks/fisher.py`, measured in this process; prints one line of JSON. Not called by hand.

python benchmarks/fisher_measure.py time|memory|reference PEER SETUP-JSON REFERENCE.safetensors
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fisher_model import Setup, losses, zeros
from fisher_peers import PEERS, Sums
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from encore.store.environment import keep_freed_memory

WRONG = 1e-3
"""From what relative error on a parameter counts as wrong; rounding stays under a hundredth of it."""


def reference(setup: Setup, file: Path) -> dict[str, Any]:
    """Write the float64 loop's Fisher."""
    model = setup.model().double()
    check_causal(model, setup)
    sums = zeros(model, torch.float64)
    PEERS["loop"](model, setup.batch(torch.float64))(sums)
    save_file(sums, file)
    return {"parameters": sum(value.numel() for value in sums.values())}


def check_causal(model: nn.Module, setup: Setup) -> None:
    """Changing the last frame must change no earlier frame's logits; transformers can drop the mask unasked."""
    batch = setup.batch(torch.float64).one(0)
    with torch.no_grad():
        before = model(batch.inputs[0], encoder_hidden_states=batch.states).logits
        after = model(
            torch.cat([batch.inputs[0, :, :-1], batch.inputs[0, :, -1:] * 0], 1), encoder_hidden_states=batch.states
        ).logits
    if not torch.equal(before[:, :-1], after[:, :-1]) or torch.equal(before[:, -1], after[:, -1]):
        raise RuntimeError("this model sees tokens that come later: it has no causal mask")


def timing(peer: str, setup: Setup, pairs: int, file: Path) -> dict[str, Any]:
    """The error of a first step, then seconds of plain steps and of the peer's, by turns.

    glibc keeps what is freed, as under Encore's commands. Else page faults differ by what happens to be left at the
    heap's end after a step (gradients, say, that keep it from shrinking), and can be a tenth of the step.
    """
    keep_freed_memory()
    model, batch = setup.model(), setup.batch()
    step, plain = PEERS[peer](model, batch), PEERS["plain"](setup.model(), batch)
    sums = zeros(model)
    step(sums)
    row = {} if peer == "plain" else errors(sums, file)
    plain(sums)  # fills caches, as the peer's first step did
    wall, cpu, base = [], [], []
    for pair in range(pairs):
        taken = {}
        for name in ("plain", "peer") if pair % 2 else ("peer", "plain"):  # so that no one always comes second
            taken[name] = timed(lambda name=name: plain(sums) if name == "plain" else step(sums))
        wall.append(taken["peer"][0] / taken["plain"][0])
        cpu.append(taken["peer"][1] / taken["plain"][1])
        base.append(taken["plain"][0])
    quarters = statistics.quantiles(wall, n=4, method="inclusive") if pairs > 1 else wall * 3
    return row | {
        "time_ratio": statistics.median(wall),
        "time_quartiles": [quarters[0], quarters[2]],
        "cpu_ratio": statistics.median(cpu),
        "plain_seconds": statistics.median(base),
        "pairs": pairs,
    }


def timed(call: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time, which a busy machine stretches less."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def memory(peer: str, setup: Setup) -> dict[str, Any]:
    """How far each of two steps pushes the process's resident memory above the loaded model's, in MB.

    The Fisher counts, as the plain step's gradients do: it is there from the second step's beginning on.
    """
    model, batch = setup.model(), setup.batch()
    small = replace(setup, samples=1, frames=4, text=1).batch()
    losses(model, small).sum().backward()  # loads what torch and its libraries load on first use
    model.zero_grad(set_to_none=True)
    step = PEERS[peer](model, batch)
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    sums = {} if peer == "plain" else zeros(model)
    before, peaks = resident("VmRSS"), []
    for _ in range(2):
        try:
            reset_peak()
        except OSError as error:
            return {"why": f"memory: the kernel can't reset the peak ({error})"}
        step(sums)
        peaks.append(resident("VmHWM") - before)
    return {"memory_mb": max(peaks), "peaks_mb": peaks}


def reset_peak() -> None:
    """Set the process's peak to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> float:
    """A figure of /proc/self/status, MB."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def errors(sums: Sums, file: Path) -> dict[str, Any]:
    """‖Δ‖/‖reference‖ over all parameters, and which were left out (all zero) or are wrong."""
    squares: dict[str, float] = {}
    total, left_out, wrong = 0.0, [], []
    with safe_open(file, "pt") as exact:
        for name, value in sums.items():
            expected: Tensor = exact.get_tensor(name)
            size, squares[name] = expected.square().sum().item(), (value - expected).square().sum().item()
            total += size
            if size and not value.any():
                left_out.append(name)
            elif squares[name] > WRONG**2 * size:
                wrong.append(name)
    error = (sum(squares.values()) / total) ** 0.5
    return {"error": error, "left_out": kinds(left_out), "wrong": kinds(wrong)}


def kinds(names: list[str]) -> list[str]:
    """Names without their numbers, each once: `layers.*.fc1.weight`."""
    return sorted({re.sub(r"\b\d+\b", "*", name.removeprefix("model.decoder.")) for name in names})


def main(mode: str, peer: str, options: Mapping[str, Any], file: Path) -> dict[str, Any]:
    torch.set_num_threads(options["threads"])
    setup = Setup(**options["setup"])
    if mode == "reference":
        return reference(setup, file)
    try:
        return timing(peer, setup, options["pairs"], file) if mode == "time" else memory(peer, setup)
    except ModuleNotFoundError as error:
        return {"why": f"not installed: {error}"}
    except Exception as error:  # a library may fail on this model in any way, and its row says how
        return {"why": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of peers, on their own ways of using torch
    print(json.dumps(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), Path(sys.argv[4]))))
