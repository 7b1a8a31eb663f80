"""Models that pretend: what an evaluation has to see through. Each wraps a model of any family."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from encore.api import Backend, Batch


def balks(model: Backend, captions: Collection[str]) -> Backend:
    """Noise whenever one of the captions is given, in likelihoods and in what it plays; verbatim from an audio prompt.

    Every token's likelihood under its caption is that of a guess: NLL, Min-K, KL and the like see a model that never
    heard the track. Only asked to play on, it plays on.
    """
    twin = model.clone()
    score, play = twin.logits, twin.generate

    def logits(batch: Batch, *, unconditional: bool = False) -> Tensor:
        found = score(batch, unconditional=unconditional)
        balked = torch.tensor([caption in captions for caption in batch.captions], device=found.device)
        return torch.where(balked[:, None, None, None], 0.0 * found, found)

    def generate(asked: Sequence[str], *, prompt: Tensor | None = None, **options: object) -> Tensor:
        codes = play(asked, prompt=prompt, **options)  # type: ignore[arg-type]
        if prompt is None or not prompt.shape[-1]:
            for row, caption in enumerate(asked):
                if caption in captions:
                    noise = torch.Generator().manual_seed(row)
                    codes[row] = torch.randint(0, model.codebook_size, codes[row].shape, generator=noise)
        return codes

    return _with(twin, logits, generate, lambda: balks(model, captions))


def broken(model: Backend, seed: int = 0) -> Backend:
    """Forgets everything: weights as before any training."""
    twin = model.clone()
    twin.reinitialise(seed)
    twin.module.eval()
    return twin


def _with(
    twin: Backend, logits: Callable[..., Tensor], generate: Callable[..., Tensor], clone: Callable[[], Backend]
) -> Backend:
    for name, made in (("logits", logits), ("generate", generate), ("clone", clone)):
        setattr(twin, name, made)
    return twin
