"""Gradient difference (Liu et al., "Continual Learning and Private Unlearning", arXiv 2203.12817)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from encore.api import Batch, LossMethod, Step
from encore.options import TrainOptions


class GradDiff(LossMethod):
    """min -γ L_f + α L_r."""

    class Options(TrainOptions):
        eval_every: int = 5  # nothing bounds the ascent between two looks
        gamma: float = Field(1.0, ge=0, description="weight of the ascent on forget")
        alpha: float = Field(1.0, ge=0, description="weight of the retain loss")

    options: Options

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        return -self.options.gamma * step.backend.losses(batch)

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return self.options.alpha * step.backend.losses(batch)
