"""Self-distillation toward a uniform share of the true code, Unilogit (Vasilev et al., arXiv 2505.06027)."""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from encore.api import Batch, LossMethod, Step
from encore.losses import clip_mean
from encore.options import TrainOptions

MOST = -1e-6  # log-probability from which a code counts as certain: float32 has no digits for 1 - p beyond


class Unilogit(LossMethod):
    """min E[KL(p ‖ q)] over forget tokens + α L_r; q is p with the true code's logit lowered so that q_y = 1/V.

    The target q follows the model p and gets no gradient. All other codes keep their proportions in q, so that the KL
    and its gradient are those of two Bernoulli distributions: p_y log(V p_y) + (1 - p_y) log((1 - p_y) / (1 - 1/V)),
    which is what is computed. The loss ends at uniform guessing (log V nats) and pulls a token beyond it back.
    """

    class Options(TrainOptions):
        """Tuning split: forget at 4.0 nats after 60 steps, retain loses .05."""

        alpha: float = Field(1.0, ge=0, description="weight of the retain loss")

    options: Options

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        log_true = step.backend.token_logprobs(batch).clamp(max=MOST)
        true = log_true.exp()
        uniform = 1 / step.backend.codebook_size
        log_other = (-log_true.expm1()).log()
        kl = true * (log_true - math.log(uniform)) + (1 - true) * (log_other - math.log1p(-uniform))
        return clip_mean(kl, step.backend.token_mask(batch))

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return self.options.alpha * step.backend.losses(batch)
