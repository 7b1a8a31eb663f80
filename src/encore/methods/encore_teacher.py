"""What the teacher of `encore` is made of: captions like a clip's own, and predictions that do not drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from encore.api import Clip
from encore.losses import clip_mean, unmasked, wide

SHARPEST = 2.0  # largest factor of a teacher's logits
ALIKE = 16  # captions of other tracks, those most like its own, that a clip's teacher has
NEARER = 0.5  # share of the way, in log-probabilities, that a teacher's mean prediction is brought to the base's
Item = TypeVar("Item")


class CaptionsLike:
    """The captions of clips, of which those most like another one, by their words in any order, are drawn."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        self._captions = sorted({clip.caption for clip in clips})
        self._alike: dict[str, list[str]] = {}

    def draw(self, caption: str, generator: torch.Generator) -> str:
        """One of the `ALIKE` captions most like this one but not equal to it; this one where there is no other."""
        if caption not in self._alike:
            from rapidfuzz import fuzz, process, utils

            others = [other for other in self._captions if other != caption]
            found = process.extract(
                caption, others, scorer=fuzz.token_sort_ratio, processor=utils.default_process, limit=ALIKE
            )
            self._alike[caption] = [other for other, *_ in found] or [caption]
        return pick(self._alike[caption], generator)


def entropy_and_slope(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The mean entropy of each clip's predictions, and how fast it falls when the logits are multiplied by a factor.

    Args:
        logits: [N, K, T, V].
        mask: bool [N, K, T].

    Returns:
        Entropies, nats per token, [N], and minus their derivatives by the factor at 1, [N]: the mean variance of the
        log-probabilities.
    """
    logp = wide(unmasked(logits, mask)).log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    variance = (logp.exp() * logp.square()).sum(-1) - entropy.square()
    entropies, slopes = (entropy.new_zeros(mask.shape).masked_scatter(mask, each) for each in (entropy, variance))
    return clip_mean(entropies, mask), clip_mean(slopes, mask)


def sharpened(logits: Tensor, mask: Tensor, entropy: float) -> Tensor:
    """Logits multiplied by a factor for each clip, 1 to `SHARPEST`, where its mean entropy is above a limit.

    To first order the factor takes the entropy halfway to the limit. (A whole Newton step overshoots where predictions
    are nearly uniform.)

    Args:
        logits: [N, K, T, V].
        mask: bool [N, K, T].
        entropy: the limit, nats per token.
    """
    mean, slope = entropy_and_slope(logits, mask)
    factor = (1 + 0.5 * (mean - entropy) / slope.clamp(min=1e-3)).clamp(1, SHARPEST)
    return logits * factor[:, None, None, None]


def mean_predictions(logits: Tensor, mask: Tensor) -> Tensor:
    """The mean over frames of each clip's predicted distributions.

    Args:
        logits: [N, K, T, V].
        mask: bool [N, K, T]; the frames that count.

    Returns:
        Probabilities [N, K, V].
    """
    probabilities = wide(logits).softmax(-1).masked_fill(~mask[..., None], 0)
    return probabilities.sum(2) / mask.sum(2).clamp(min=1)[..., None]


def nearer(logits: Tensor, mask: Tensor, means: Sequence[Tensor | None]) -> Tensor:
    """Logits plus one number a clip, codebook and code, which bring the mean predictions nearer to given ones.

    Args:
        logits: [N, K, T, V].
        mask: bool [N, K, T].
        means: mean prediction [K, V] of each clip that is changed; None for others.
    """
    own = mean_predictions(logits, mask).clamp(min=1e-12)
    wanted = torch.stack([one if mean is None else mean.clamp(min=1e-12) for one, mean in zip(own, means, strict=True)])
    return logits + NEARER * (wanted / own).log()[:, :, None].to(logits.dtype)


def draw(most: int, generator: torch.Generator) -> int:
    """A number from 0 to `most` - 1; 0 where `most` is less than 2."""
    return int(torch.randint(max(most, 1), (1,), generator=generator))


def pick(items: Sequence[Item], generator: torch.Generator) -> Item:
    return items[draw(len(items), generator)]
