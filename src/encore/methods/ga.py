"""Gradient ascent, the first method of "No Encore" (arXiv 2509.06277)."""

from __future__ import annotations

from torch import Tensor

from encore.api import Batch, LossMethod, Step
from encore.options import TrainOptions


class GradientAscent(LossMethod):
    """min -L_f. Nothing holds the remaining music: the paper's finding is that it suffers."""

    class Options(TrainOptions):
        """Training on a track stops at the held-out NLL, or the loss has no bound. Tuning split: of lr 1e-4 to 1e-3 the
        least goes past the level least (4.8 nats; 7.5 at 5e-4) and loses least of retain (3.8 nats; 6.6)."""

        lr: float = 1e-4
        steps: int = 120
        eval_every: int = 5

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        return -step.backend.losses(batch)
