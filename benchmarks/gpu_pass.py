"""A whole Fisher pass beside a whole training step on a GPU: `python benchmarks/gpu_pass.py [--out FILE] [--dry-run]`.

The model is transformers' MusicGen decoder at its real sizes with random weights, float32 parameters under bfloat16
autocast. A step is forward and backward (no optimiser: that would flatter the ratio); a Fisher pass is the same forward
and backward inside `encore.curvature.capture`. In turns; medians; peak memory above what the model takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

SIZES = {"small": (1024, 24, 16), "medium": (1536, 48, 24), "large": (2048, 48, 32), "tiny": (32, 2, 4)}
CODEBOOKS, VOCABULARY, WORDS = 4, 2048, 32


def build(size: str, device: str) -> nn.Module:
    hidden, layers, heads = SIZES[size]
    config = MusicgenDecoderConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, ffn_dim=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_codebooks=CODEBOOKS, dropout=0.0, attention_dropout=0.0,
        activation_dropout=0.0, layerdrop=0.0, pad_token_id=VOCABULARY, bos_token_id=VOCABULARY,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = MusicgenForCausalLM(config)
    return model.eval()  # the Fisher pass has no dropout, so the step it is compared with has none


def losses(model: nn.Module, n: int, t: int, device: str) -> Callable[[], Tensor]:
    """The mean negative log-likelihood of each sample, [N]; every call runs forward."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(VOCABULARY, (n, CODEBOOKS, t), generator=generator).to(device)
    text = torch.randn(n, WORDS, model.config.hidden_size, generator=generator).to(device)

    def call() -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = model(input_ids=codes.flatten(0, 1), encoder_hidden_states=text, use_cache=False).logits
        nll = nn.functional.cross_entropy(logits.float().flatten(0, 1), codes.flatten(), reduction="none")
        return nll.view(n, -1).mean(1)

    return call


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(size: str, n: int, t: int, device: str, turns: int) -> dict[str, Any]:
    from encore.curvature import capture

    model = build(size, device)
    forward = losses(model, n, t, device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        forward().sum().backward()

    def fisher(**more: bool) -> None:
        model.zero_grad(set_to_none=True)
        with capture(model, fisher=True, **more) as captured:
            forward().sum().backward()
        captured.fisher  # noqa: B018 - what was asked for is complete only now

    def everything() -> None:
        fisher(norms=True, total=True)

    taken: dict[str, list[float]] = {"step": [], "fisher": [], "all": []}
    memory: dict[str, int] = {}
    for turn in range(turns + 1):
        for name, call in (("step", step), ("fisher", fisher), ("all", everything)):
            before = 0
            if device == "cuda":
                model.zero_grad(set_to_none=True)
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            begun = clock(device)
            call()
            if turn > 0:  # the first one allocates, and capture proves its ground
                taken[name].append(clock(device) - begun)
                if device == "cuda":
                    memory[name] = torch.cuda.max_memory_allocated() - before
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    row: dict[str, Any] = {"model": size, "N": n, "T": t, "seconds": seconds}
    row["parameters"] = sum(weight.numel() for weight in model.parameters())
    row["ratio"] = statistics.median(f / s for f, s in zip(taken["fisher"], taken["step"], strict=True))
    row["ratio_all"] = statistics.median(a / s for a, s in zip(taken["all"], taken["step"], strict=True))
    row["megabytes"] = {name: size / 1e6 for name, size in memory.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON lines")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model on the CPU: that the script runs")
    parser.add_argument("--seconds", type=float, default=130, help="no row is begun later")
    options = parser.parse_args()
    device = "cpu" if options.dry_run else "cuda"
    cases = [("small", 8, 250), ("small", 8, 1500), ("medium", 8, 250), ("small", 32, 250), ("large", 8, 250)]
    lines, begun = [], time.monotonic()
    print("| model | N | T | step s | Fisher pass s | ratio | with norms and total | step MB | Fisher MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size, n, t in [("tiny", 2, 6)] if options.dry_run else cases:
        if time.monotonic() - begun > options.seconds:
            print(f"not run, out of time: {size} N {n} T {t}")
            continue
        try:
            row = measure(size, n, t, device, turns=2 if options.dry_run else 7)
        except torch.OutOfMemoryError:
            print(f"not run, out of memory: {size} N {n} T {t}")
            continue
        finally:
            if device == "cuda":
                torch.cuda.empty_cache()
        lines.append(json.dumps(row))
        used = [f"{row['megabytes'].get(name, 0):.0f}" for name in ("step", "fisher")]
        print(
            f"| {size} | {n} | {t} | {row['seconds']['step']:.3f} | {row['seconds']['fisher']:.3f} | "
            f"{row['ratio']:.2f} | {row['ratio_all']:.2f} | {' | '.join(used)} |",
            flush=True,
        )
        if options.out:
            options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
