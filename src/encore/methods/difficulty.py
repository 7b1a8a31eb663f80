"""Estimate from a track's codes how high its NLL would be for a model that was not trained on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from encore.api import Clip
from encore.losses import code_entropy


def difficulty(clips: Sequence[Clip], holdout: Sequence[Clip], nll: Tensor) -> Tensor:
    """The NLL that each clip should have as held-out music, as a share of the mean NLL of held-out music, [N].

    A line is fitted to the NLL of held-out clips over the entropy of their codes. Its slope is shrunk by its
    leave-one-out skill over the mean: where entropy does not predict the NLL, every share is 1. Entropies and predicted
    NLLs are clamped to the ranges of the held-out clips.

    Args:
        clips: clips that the model may have memorised.
        holdout: clips that the model was not trained on.
        nll: the model's NLL of `holdout`, nats per token, [M].
    """
    entropies = torch.tensor([code_entropy(clip.codes) for clip in clips], dtype=torch.float64)
    entropy = torch.tensor([code_entropy(clip.codes) for clip in holdout], dtype=torch.float64)
    value, count = nll.double().cpu(), len(holdout)
    x, y = entropy - entropy.mean(), value - value.mean()
    spread = x.square().sum()
    if count < 3 or float(spread) < 1e-9:
        return torch.ones(len(clips))
    entropies = entropies.clamp(float(entropy.min()), float(entropy.max()))
    slope = (x * y).sum() / spread
    left_out = (y - slope * x) / (1 - 1 / count - x.square() / spread).clamp(min=1e-9)  # of the line
    skill = 1 - left_out.square().sum() / (y * count / (count - 1)).square().sum().clamp(min=1e-9)  # over the mean
    predicted = value.mean() + skill.clamp(min=0) * slope * (entropies - entropy.mean())
    return (predicted.clamp(float(value.min()), float(value.max())) / value.mean()).float()
