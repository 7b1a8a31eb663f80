"""SCRUB (Kurmanji et al., "Towards Unbounded Machine Unlearning", arXiv 2302.09880)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from encore.api import Batch, LossMethod, Phase, Step
from encore.losses import clip_mean, kl_divergence
from encore.options import TrainOptions


class Scrub(LossMethod):
    """In turns: max T² KL_T(base ‖ model) on forget; min γ L_r + α T² KL_T(base ‖ model) on retain.

    KL_T is that of the logits over T. Maximising steps are every other one of the first 2 × `max_steps`; all others
    minimise.
    """

    class Options(TrainOptions):
        """Tuning split: forget ends at 2.6 nats, after 7.4 at step 20; memorised retain at .06, after 3.4."""

        eval_every: int = 5  # the ascent is unbounded between two snapshots
        max_steps: int = Field(20, ge=1, description="number of maximising steps")
        gamma: float = Field(1.0, ge=0, description="weight of the NLL of retain")
        alpha: float = Field(0.5, ge=0, description="weight of the KL on retain")
        temperature: float = Field(2.0, gt=0, description="T, which logits are divided by")

    options: Options

    def phase(self, index: int) -> Phase:
        return "forget" if index % 2 == 0 and index < 2 * self.options.max_steps else "retain"

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        return -self._kl(step, batch)

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return self.options.gamma * step.backend.losses(batch) + self.options.alpha * self._kl(step, batch)

    def _kl(self, step: Step, batch: Batch) -> Tensor:
        """T² KL_T(base ‖ model) of each clip, a mean over its tokens, [N]."""
        assert step.reference is not None  # declared in the spec
        mask, temperature = step.backend.token_mask(batch), self.options.temperature
        base, model = step.reference.logits(batch), step.backend.logits(batch)
        return temperature**2 * clip_mean(kl_divergence(base / temperature, model / temperature, mask), mask)
