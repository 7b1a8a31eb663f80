"""Attention of short clips in bf16 on a CPU with AMX: as products and a softmax in place of torch's fused kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from encore.api import Clip
from encore.api.data import LazyClips
from encore.store.environment import cpu_has

FRAMES = 512
"""Longest clip that gains (`benchmarks/attention.py`). The products hold frames × frames weights per head and layer;
torch's kernel does not."""
SOME = 64  # clips of a large catalogue that are looked at


def prefers_products(device: str, precision: str, sets: Sequence[Sequence[Clip]]) -> bool:
    """Whether a run is faster with attention as products.

    On a Xeon with AMX a step of a decoder of width 256 took .68 s so, 1.49 s with the fused kernel, and 1.25 s in
    float32.

    Args:
        device: as torch names it.
        precision: "fp32" or "bf16".
        sets: the clips of the run.
    """
    if precision != "bf16" or device != "cpu" or not cpu_has("amx_tile"):
        return False
    some = [clip for clips in sets for clip in (_spaced(clips) if isinstance(clips, LazyClips) else clips)]
    return all(clip.codes.shape[-1] <= FRAMES for clip in some)


@contextmanager
def attention_by_products(module: nn.Module) -> Iterator[None]:
    """Inside the context, the models of transformers in a module compute attention as products."""
    parts: list[Any] = [
        part
        for part in module.children()
        if hasattr(part, "set_attn_implementation") and part.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    ]
    for part in parts:
        part.set_attn_implementation("eager")
    try:
        yield
    finally:
        for part in parts:
            part.set_attn_implementation("sdpa")


def _spaced(clips: Sequence[Clip]) -> list[Clip]:
    count = min(SOME, len(clips))
    return [clips[i * len(clips) // count] for i in range(count)]
