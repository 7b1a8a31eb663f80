"""Self-distillation from lowered logits, UNDIAL (Dong et al., arXiv 2402.10052)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from encore.api import Batch, LossMethod, Step
from encore.losses import token_cross_entropy
from encore.options import TrainOptions


class Undial(LossMethod):
    """min CE(softmax(z_base - β e_y) ‖ model) + α L_r, z_base the base's logits and e_y one-hot at the true code y.

    The cross-entropy is a clip's mean per token. The paper has no retain loss (α = 0), and trains an adapter.
    """

    class Options(TrainOptions):
        """β is the paper's, α that of `rl`. One run on the tuning split: 1.2 nats, which 120 steps raise to 1.4."""

        beta: float = Field(10.0, gt=0, description="amount by which the base's logit of the true code is lowered")
        alpha: float = Field(3.0, ge=0, description="weight of the retain loss")

    options: Options

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        assert step.reference is not None  # declared in the spec
        teacher = step.reference.logits(batch).float()
        true = batch.codes[..., None]
        teacher = teacher.scatter(-1, true, teacher.gather(-1, true) - self.options.beta)
        return token_cross_entropy(step.backend.logits(batch), teacher.softmax(-1), step.backend.token_mask(batch))

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return self.options.alpha * step.backend.losses(batch)
