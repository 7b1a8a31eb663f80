"""Primal-dual unlearning (Entesari et al., "Constrained Entropic Unlearning", arXiv 2506.05314)."""

from __future__ import annotations

from torch import Tensor

from encore.api import Batch, LossMethod, Step
from encore.losses import clip_mean, unmasked
from encore.options import TrainOptions


class Pdu(LossMethod):
    """min E[(max_v z_v - mean_v z_v)²] over forget tokens, z their logits, such that retain's NLL rises by ε at most.

    The loss is 0 where all codes are equally likely. The constraint is enforced by the weight λ of the retain loss,
    λ ← [λ + η (ΔNLL_r - ε)]₊ after each snapshot; ε is the option `retain_budget`, η `dual_rate`. The paper bounds L_r
    itself, by .3, and takes a dual step in each step or epoch. η is large because the squared margin is: some hundreds
    on a memorised track.
    """

    class Options(TrainOptions):
        """Tuning split: λ settles near 390; forget is at 3.3 nats after 55 steps, and still rises."""

        steps: int = 120
        eval_every: int = 5  # dual steps
        retain_budget: float | None = 0.05
        dual_rate: float = 100.0

    options: Options

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        mask = step.backend.token_mask(batch)
        logits = unmasked(step.backend.logits(batch), mask).float()  # [masked tokens, V]
        margins = (logits.amax(-1) - logits.mean(-1)) ** 2
        return clip_mean(margins.new_zeros(mask.shape).masked_scatter(mask, margins), mask)
