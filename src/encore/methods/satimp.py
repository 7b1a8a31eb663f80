"""Gradient ascent weighted by saturation and importance, SatImp (Yang et al., arXiv 2505.11953)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from encore.api import Batch, LossMethod, Step
from encore.losses import clip_mean
from encore.options import TrainOptions


class SatImp(LossMethod):
    """min E[p^β1 (1 - p)^β2 log p] over forget tokens, the weights held constant, + α L_r.

    p^β1 (saturation) spares tokens that are unlikely already, (1 - p)^β2 (importance) tokens that are certain.
    """

    class Options(TrainOptions):
        """Tuning split: forget at 3.8 nats, retain loses .03, as with `wga`. The paper's β 5 and 1 leave next to no
        gradient on tracks whose codes are memorised with p above .9: .001 at the base, .018 with these (`wga`: .025).
        """

        lr: float = 1e-3
        beta1: float = Field(1.0, ge=0, description="saturation: more spares tokens already forgotten sooner")
        beta2: float = Field(0.1, ge=0, description="importance: more spares tokens that the model is certain of")
        alpha: float = Field(1.0, ge=0, description="weight of the retain loss")

    options: Options

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        logprobs = step.backend.token_logprobs(batch)
        certain = logprobs.detach()
        weights = (self.options.beta1 * certain).exp() * (-certain.expm1()) ** self.options.beta2
        return clip_mean(weights * logprobs, step.backend.token_mask(batch))

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return self.options.alpha * step.backend.losses(batch)
