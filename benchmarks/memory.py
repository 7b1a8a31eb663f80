"""What adapters, checkpointed activations, bf16 weights and 8-bit states save: peak memory and time of a step.

    python benchmarks/memory.py [--width 512 --layers 8 --clips 1] [--methods npo,ga-kl] [--steps 3] [--rank 16]
        [--ways "LoRA;LoRA, checkpointed"]

Each row is a process of its own, which takes a few steps on the embedded tracks with the embedded model or a random
decoder of another width and number of layers, `--clips` of either set a step. Memory is the process's peak after the
first step less what it held before the run (float32 model, codec and libraries), so that a run whose frozen weights
shrink may have less than nothing; on a GPU torch's allocations. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

WAYS = {
    "all weights": {}, "all weights, checkpointed": {"checkpoint_activations": True},
    "LoRA": {"lora": True}, "LoRA, checkpointed": {"lora": True, "checkpoint_activations": True},
    "all weights, autocast": {"precision": "bf16"}, "all weights, bf16": {"weight_type": "bf16"},
    "all weights, bf16, 8-bit states": {"weight_type": "bf16", "optimizer_states": "8bit"},
    "LoRA, checkpointed, autocast": {"lora": True, "checkpoint_activations": True, "precision": "bf16"},
    "LoRA, checkpointed, bf16": {"lora": True, "checkpoint_activations": True, "weight_type": "bf16"},
}  # fmt: skip


def held(device: str) -> int:
    """Bytes held now; restarts the count of `peak`."""
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak(device)


def peak(device: str) -> int:
    """The most bytes that were held at once."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """One row, in this process."""
    import soundfile
    import torch

    from encore import assets, plugins
    from encore.api import Clip
    from encore.backends.musicgen import MusicgenBackend
    from encore.unlearn.config import Lora
    from encore.unlearn.engine import Clips, Engine

    device = given.device
    backend = MusicgenBackend.load("tiny", device=device)
    clips: dict[str, list[Clip]] = {"forget": [], "retain": [], "holdout": []}
    for line in assets.CATALOG.read_text().splitlines():
        track = json.loads(line)
        if track["split"] in clips:
            audio, _ = soundfile.read(assets.FOLDER / track["file_name"], dtype="float32")
            codes = backend.encode(torch.from_numpy(audio)[None, None])[0]
            clips[track["split"]].append(Clip(track["id"], track["caption"], codes))
    if given.width:
        config = backend.model.config
        config.decoder.hidden_size, config.decoder.ffn_dim = given.width, 4 * given.width
        config.decoder.num_hidden_layers, config.decoder.num_attention_heads = given.layers, given.width // 64
        backend = MusicgenBackend(type(backend.model)(config).to(device), backend.processor)
    few = Clips(clips["forget"][: given.clips], clips["retain"][: given.clips], [])
    cls = plugins.methods().resolve(given.methods)
    method = cls(cls.Options(steps=given.steps, stop="never", eval_every=given.steps, lr=1e-4, batch_size=given.clips))
    ways: dict[str, Any] = dict(WAYS[given.row])
    if ways.get("lora"):
        ways["lora"] = Lora(given.rank)
    ends: list[float] = []

    def record(line: Any) -> None:
        if "grad_norm" in line:
            if not ends:
                held(device)  # from here on everything is there that a step needs, and weights have their type
            ends.append(time.process_time() if device == "cpu" else time.perf_counter())

    engine = Engine(backend, few, record=record, **ways)
    before = held(device)
    engine.run(method)
    spent = sorted(b - a for a, b in pairwise(ends))
    return {
        "mb": (peak(device) - before) / 1e6,
        "seconds": spent[len(spent) // 2],
        "reference": engine.outcome.reference,
        "trained": sum(w.numel() for w in engine.adapter.parameters.values())
        if engine.adapter
        else sum(w.numel() for w in backend.module.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, help="of a random decoder; default: the embedded model")
    parser.add_argument("--layers", type=int, default=8, help="of the random decoder")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--methods", default="npo,ga-kl")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ways", help=f"with ; between; default: all of {'; '.join(WAYS)}")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measure(given)))
        return
    print("| method | trained | reference | peak MB of the run | s a step (CPU time on a CPU) |\n|---|---|---|---|---|")
    for method in given.methods.split(","):
        for way in given.ways.split(";") if given.ways else WAYS:
            arguments = [sys.executable, __file__, *sys.argv[1:], "--methods", method, "--row", way]
            row = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
            name = f"{way} ({row['trained']:,})"
            print(
                f"| `{method}` | {name} | {row['reference'] or ''} | {row['mb']:.0f} | {row['seconds']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
