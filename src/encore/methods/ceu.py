"""Cross-entropy unlearning, CE-U (Yang, arXiv 2503.01224)."""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from encore.api import Batch, LossMethod, Step
from encore.losses import token_cross_entropy
from encore.options import TrainOptions


class Ceu(LossMethod):
    """min CE(q, p) on forget + α L_r; q is the model's own distribution p with the true code's logit at -∞.

    q follows the model and gets no gradient. The gradient of a logit is then bounded, also where the model is certain,
    and vanishes as the code becomes unlikely. The paper has no retain loss (α = 0).
    """

    class Options(TrainOptions):
        """Tuning split: 3.8 nats after 120 steps, 3.0 after 60; α is that of `rl`, whose gradient is as large."""

        steps: int = 120
        alpha: float = Field(3.0, ge=0, description="weight of the retain loss")

    options: Options

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        logits = step.backend.logits(batch)
        others = logits.detach().float().scatter(-1, batch.codes[..., None], -math.inf)
        return token_cross_entropy(logits, others.softmax(-1), step.backend.token_mask(batch))

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return self.options.alpha * step.backend.losses(batch)
