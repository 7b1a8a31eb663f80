"""Saliency unlearning (Fan et al., ICLR 2024, arXiv 2310.12508)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from encore.api import Session
from encore.curvature import mean_gradient
from encore.methods.rl import RandomLabels


class SalUn(RandomLabels):
    """`rl` on the weights with the largest |Σ g_f|, g_f the gradient of a forget clip's mean NLL at the base.

    The share is of all weights together, not of each parameter. The others stay bit for bit as they are, and so do
    weights whose gradient is 0, however many they are.
    """

    class Options(RandomLabels.Options):
        """Tuning split: half of the weights forgets more than a fifth does, and costs retain less (.15 against .48); so
        does α 3 beside 1 (.07)."""

        share: float = Field(0.5, gt=0, le=1, description="share of the weights that is trained")

    options: Options

    def prepare(self, session: Session) -> None:
        super().prepare(session)
        gradient, _ = mean_gradient(session.backend, session.forget, micro_batch_size=self.options.micro_batch_size)
        limit = largest(gradient, self.options.share)
        session.masks = {name: (value.abs() >= limit) & (value != 0) for name, value in gradient.items()}


def largest(values: dict[str, Tensor], share: float) -> float:
    """The absolute value that a share of all entries reaches."""
    flat = torch.cat([value.abs().flatten() for value in values.values()])
    return float(flat.kthvalue(len(flat) - max(1, round(share * len(flat))) + 1).values)
