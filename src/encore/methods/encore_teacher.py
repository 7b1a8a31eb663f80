"""The teacher of `encore`: similar captions, and corrections of its predictions against drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from encore.api import Clip
from encore.losses import clip_mean, unmasked, wide

MAX_LOGIT_SCALE = 2.0  # largest factor of a teacher's logits
SIMILAR_CAPTIONS = 16  # captions of other tracks, those most like its own, that a clip's teacher has
MEAN_SHIFT = 0.5  # share of the way, in log-probabilities, that a teacher's mean prediction is moved to the base's
Item = TypeVar("Item")


class SimilarCaptions:
    """The captions of clips, of which those most like another one, by their words in any order, are drawn."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        self._captions = sorted({clip.caption for clip in clips})
        self._similar: dict[str, list[str]] = {}

    def draw(self, caption: str, generator: torch.Generator) -> str:
        """One of the `SIMILAR_CAPTIONS` other captions most like this one; this one where there is no other."""
        if caption not in self._similar:
            from rapidfuzz import fuzz, process, utils

            others = [other for other in self._captions if other != caption]
            found = process.extract(
                caption, others, scorer=fuzz.token_sort_ratio, processor=utils.default_process, limit=SIMILAR_CAPTIONS
            )
            self._similar[caption] = [other for other, *_ in found] or [caption]
        return random_choice(self._similar[caption], generator)


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
    """Logits multiplied by a factor for each clip, 1 to `MAX_LOGIT_SCALE`, where its mean entropy is above a limit.

    To first order the factor takes the entropy halfway to the limit: half of a Newton step.

    Args:
        logits: [N, K, T, V].
        mask: bool [N, K, T].
        entropy: the limit, nats per token.

    Returns:
        Logits [N, K, T, V].
    """
    mean, slope = entropy_and_slope(logits, mask)
    factor = (1 + 0.5 * (mean - entropy) / slope.clamp(min=1e-3)).clamp(1, MAX_LOGIT_SCALE)
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


def shift_mean_toward(logits: Tensor, mask: Tensor, means: Sequence[Tensor | None]) -> Tensor:
    """Logits plus an offset per clip, codebook and code that moves the mean predictions toward given ones.

    The offset is `MEAN_SHIFT` times the difference of the logarithms of the given and the own mean.

    Args:
        logits: [N, K, T, V].
        mask: bool [N, K, T].
        means: mean prediction [K, V] of each clip that is changed; None for others.

    Returns:
        Logits [N, K, T, V].
    """
    own = mean_predictions(logits, mask).clamp(min=1e-12)
    wanted = torch.stack([one if mean is None else mean.clamp(min=1e-12) for one, mean in zip(own, means, strict=True)])
    return logits + MEAN_SHIFT * (wanted / own).log()[:, :, None].to(logits.dtype)


def random_below(limit: int, generator: torch.Generator) -> int:
    """A whole number from 0 to `limit` - 1; 0 where `limit` is less than 2."""
    return int(torch.randint(max(limit, 1), (1,), generator=generator))


def random_choice(items: Sequence[Item], generator: torch.Generator) -> Item:
    """One of the items, of which there is at least one."""
    return items[random_below(len(items), generator)]
