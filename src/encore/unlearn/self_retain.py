"""`--retain self`: where no catalogue is at hand, keep what the base model plays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from encore.api import Backend, Clip

SECONDS = 5.0
BATCH = 16
REPLAY = 0.5  # share of first-codebook tokens equal to a forget clip's at which a clip is a replay of it
REPLAY_COSINE = 0.8  # the same for latents, as a cosine

_LEADS = ("piano", "acoustic guitar", "strings", "flute", "organ", "brass", "music box", "accordion")
_MOODS = ("slow and solemn", "bright and cheerful", "melancholic", "fast and driving", "dreamy", "march-like")


def captions() -> list[str]:
    """Plain captions that name no piece: every lead instrument in every mood."""
    return [f"{lead}, {mood}" for lead in _LEADS for mood in _MOODS]


def play_retain(
    backend: Backend, forget: Sequence[Clip], *, seed: int, progress: Callable[[int, int], None] = lambda done, of: None
) -> list[Clip]:
    """Sample a clip a caption from the model as it is, leaving out those that replay a track to be forgotten.

    What the model says of these captions is kept by keeping its likelihood on them; a track it has memorised and
    that none of them brings up is not protected, so a list of real tracks is better where there is one.
    """
    texts = captions()
    clips = []
    seconds = min(SECONDS, backend.max_frames / backend.frame_rate)
    for start in range(0, len(texts), BATCH):
        progress(start, len(texts))
        part = texts[start : start + BATCH]
        codes = backend.generate(part, seconds=seconds, seed=seed + start, guidance=1.0)
        clips += [Clip(f"self:{start + i}", text, row) for i, (text, row) in enumerate(zip(part, codes, strict=True))]
    return [clip for clip in clips if not any(_replays(clip, track) for track in forget)]


def _replays(clip: Clip, track: Clip) -> bool:
    frames = min(clip.codes.shape[-1], track.codes.shape[-1])
    own, other = clip.codes[..., :frames].cpu(), track.codes[..., :frames].cpu()
    if own.is_floating_point():
        return float(torch.cosine_similarity(own.flatten(), other.flatten(), 0)) >= REPLAY_COSINE
    return float((own[0] == other[0]).float().mean()) >= REPLAY
