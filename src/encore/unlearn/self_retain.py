"""`--retain self`: without a catalogue, keep generations of the base model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from encore.api import Backend, Clip
from encore.errors import UsageError

SECONDS = 5.0
BATCH = 16
COPY = 0.5  # a clip is a copy of a forget clip at this share of equal first-codebook tokens
COPY_COSINE = 0.8  # the same for latents, as a cosine

_LEADS = ("piano", "acoustic guitar", "strings", "flute", "organ", "brass", "music box", "accordion")
_MOODS = ("slow and solemn", "bright and cheerful", "melancholic", "fast and driving", "dreamy", "march-like")


def captions() -> list[str]:
    """Generic captions: every lead instrument in every mood."""
    return [f"{lead}, {mood}" for lead in _LEADS for mood in _MOODS]


def generate_retain(
    backend: Backend, forget: Sequence[Clip], *, seed: int, progress: Callable[[int, int], None] = lambda done, of: None
) -> list[Clip]:
    """Sample one clip per caption from the model, leaving out copies of tracks to forget.

    Memorised tracks that none of these captions brings up are not protected, so a list of real tracks is better.

    Args:
        backend: the base model.
        forget: clips to forget.
        seed: of the samples.
        progress: called with the number of finished captions, and of all captions.

    Raises:
        UsageError: all samples are copies.
    """
    texts = captions()
    clips = []
    seconds = min(SECONDS, backend.max_frames / backend.frame_rate)
    for start in range(0, len(texts), BATCH):
        progress(start, len(texts))
        part = texts[start : start + BATCH]
        codes = backend.generate(part, seconds=seconds, seed=seed + start, guidance=1.0)
        clips += [Clip(f"self:{start + i}", text, row) for i, (text, row) in enumerate(zip(part, codes, strict=True))]
    kept = [clip for clip in clips if not any(_is_copy(clip, track) for track in forget)]
    if not kept:
        raise UsageError(
            "every generation of the model is a copy of a track to forget, so `--retain self` has nothing to keep",
            "name music to keep: --retain LIST",
        )
    return kept


def _is_copy(clip: Clip, track: Clip) -> bool:
    frames = min(clip.codes.shape[-1], track.codes.shape[-1])
    a, b = clip.codes[..., :frames].cpu(), track.codes[..., :frames].cpu()
    if a.is_floating_point():
        return float(torch.cosine_similarity(a.flatten(), b.flatten(), 0)) >= COPY_COSINE
    return float((a[0] == b[0]).float().mean()) >= COPY
