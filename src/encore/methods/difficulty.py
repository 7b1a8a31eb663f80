"""Estimate from a track's codes how high its NLL would be for a model that was not trained on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from encore.api import Clip
from encore.losses import code_entropy


def difficulty(clips: Sequence[Clip], new: Sequence[Clip], nll: Tensor) -> Tensor:
    """The NLL that each clip should have as new music, as a share of the mean NLL of new music, [N].

    A line is fitted to the NLL of new clips over the entropy of their codes. Its slope is shrunk by its leave-one-out
    skill over the mean: where entropy does not predict the NLL, every share is 1. Entropies are clamped to the range of
    the new clips.

    Args:
        clips: clips that the model may have memorised.
        new: clips that the model was not trained on.
        nll: the model's NLL of `new`, nats per token, [M].
    """
    entropies = torch.tensor([code_entropy(clip.codes) for clip in clips], dtype=torch.float64)
    entropy = torch.tensor([code_entropy(clip.codes) for clip in new], dtype=torch.float64)
    value, count = nll.double().cpu(), len(new)
    x, y = entropy - entropy.mean(), value - value.mean()
    spread = x.square().sum()
    if count < 3 or float(spread) < 1e-9:
        return torch.ones(len(clips))
    entropies = entropies.clamp(float(entropy.min()), float(entropy.max()))
    slope = (x * y).sum() / spread
    left_out = (y - slope * x) / (1 - 1 / count - x.square() / spread).clamp(min=1e-9)  # of the line
    skill = 1 - left_out.square().sum() / (y * count / (count - 1)).square().sum().clamp(min=1e-9)  # over the mean
    return (1 + skill.clamp(min=0) * slope * (entropies - entropy.mean()) / value.mean()).float()
