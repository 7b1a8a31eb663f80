"""Causal attention forward and backward on one CPU thread: torch's fused kernel beside products and a softmax.

    OMP_NUM_THREADS=1 python benchmarks/attention.py

Seconds of processor time, the least of four, for 16 heads of 64, float32 and bfloat16.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = ((4, 250), (2, 500), (1, 1000), (1, 1500))  # clips, frames
TURNS = 4


def products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    weights = torch.matmul(query, key.transpose(-1, -2)) * query.shape[-1] ** -0.5 + mask
    return torch.matmul(F.softmax(weights, -1), value)


def fused(query: Tensor, key: Tensor, value: Tensor, _mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def main() -> None:
    torch.set_num_threads(1)
    print("| clips, frames | type | fused | products |\n|---|---|---|---|")
    for clips, frames in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            given = [torch.randn(clips, 16, frames, 64, dtype=dtype, requires_grad=True) for _ in range(3)]
            mask = torch.full((frames, frames), torch.finfo(dtype).min, dtype=dtype).triu(1)
            seconds = []
            for attention in (fused, products):
                times = []
                for _ in range(TURNS):
                    began = time.process_time()
                    attention(*given, mask).sum().backward()
                    times.append(time.process_time() - began)
                seconds.append(min(times))
            print(f"| {clips}, {frames} | {dtype} | {seconds[0]:.3f} | {seconds[1]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
