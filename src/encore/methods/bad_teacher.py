"""Unlearning by a competent and an incompetent teacher (Chundawat et al., arXiv 2205.08096)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from encore.api import Batch, LossMethod, Session, Step
from encore.losses import clip_mean, kl_divergence
from encore.options import TrainOptions


class BadTeacher(LossMethod):
    """min KL(untrained ‖ model) on forget + α KL(base ‖ model) on retain, each a clip's mean per token.

    The untrained model is a frozen clone with weights drawn again by the run's seed. Its predictions are nearly uniform
    over the codes. It is held beside the frozen base: two further copies of the weights, one of them with an adapter.
    """

    frozen_copies: ClassVar[int] = 1

    class Options(TrainOptions):
        """Tuning split: at the held-out NLL after 60 steps (4.5 nats), retain loses .07; relearned at once (.2)."""

        alpha: float = Field(3.0, ge=0, description="weight of the KL on retain")

    options: Options

    def prepare(self, session: Session) -> None:
        self._untrained = session.backend.clone()
        self._untrained.reinitialise(session.seed)
        self._untrained.module.requires_grad_(False).eval()

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        mask = step.backend.token_mask(batch)
        with torch.no_grad():
            untrained = self._untrained.logits(batch)
        return clip_mean(kl_divergence(untrained, step.backend.logits(batch), mask), mask)

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        assert step.reference is not None  # declared in the spec
        mask = step.backend.token_mask(batch)
        kl = kl_divergence(step.reference.logits(batch), step.backend.logits(batch), mask)
        return self.options.alpha * clip_mean(kl, mask)
