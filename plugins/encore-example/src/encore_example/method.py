"""A loss method: Encore owns the loop, the optimiser, checkpoints and stopping; this says what to minimise."""

from __future__ import annotations

from encore.api import Batch, LossMethod, Step
from encore.options import TrainOptions
from pydantic import Field
from torch import Tensor


class Hinge(LossMethod):
    """min relu(level + margin - NLL_forget) + NLL_retain, per clip.

    `level` is the NLL of held-out music under the base model. A clip that has reached it has no gradient, so the model
    is not driven past its predictions for held-out music.
    """

    class Options(TrainOptions):
        """Set with `-o key=value`; everything of `TrainOptions` (lr, steps, ...) can be set too."""

        margin: float = Field(
            0.0, description="nats per token above the NLL of held-out music that a clip is raised to"
        )

    options: Options

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        assert step.holdout_nll is not None  # the spec needs `holdout`
        return (step.holdout_nll + self.options.margin - step.backend.losses(batch)).relu()  # [N]

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return step.backend.losses(batch)  # [N]
