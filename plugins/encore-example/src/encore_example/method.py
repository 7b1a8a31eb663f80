"""A loss method: Encore owns the loop, the optimiser, checkpoints and stopping; this says what to minimise."""

from __future__ import annotations

from encore.api import Batch, LossMethod, Step
from encore.options import TrainOptions
from pydantic import Field
from torch import Tensor


class Hinge(LossMethod):
    """min relu(level + margin - NLL_forget) + NLL_retain, a clip.

    `level` is the NLL of unseen music under the base model. A clip that has reached it pushes no more, so the model
    is not driven past its predictions for held-out music.
    """

    class Options(TrainOptions):
        """Set with `-o key=value`; everything of `TrainOptions` (lr, steps, ...) can be set too."""

        margin: float = Field(0.0, description="nats a token above the unseen level to push a clip to")

    options: Options

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        assert step.holdout_nll is not None  # the spec needs `holdout`
        return (step.holdout_nll + self.options.margin - step.backend.losses(batch)).relu()  # [N]

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return step.backend.losses(batch)  # [N]
