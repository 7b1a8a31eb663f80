"""Representation misdirection (Li et al., "The WMDP Benchmark", arXiv 2403.03218)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from encore.api import Batch, LossMethod, Session, Step
from encore.options import TrainOptions


class Rmu(LossMethod):
    """min γ E‖h - c s u‖² / s² on forget + α E‖h - h_base‖² / s² on retain, h the hidden states at one depth.

    u is a random unit vector, and s the root mean square of the base's ‖h‖ over forget frames. In the paper, whose loss
    has no s and averages over the D channels, c is a length of one model's states; here it is a multiple of their norm.
    Blocks after the depth are not run, and stay as they are; the paper trains three matrices before it.
    """

    class Options(TrainOptions):
        """Tuning split: forget is at 4.0 nats, which relearning undoes at once (.04); retain loses .20."""

        gamma: float = Field(1.0, ge=0, description="weight of the misdirection of forget")
        alpha: float = Field(10.0, ge=0, description="weight of the distance from base on retain")
        c: float = Field(2.0, gt=0, description="length of the target, as a multiple of the base's hidden states")
        depth: float = Field(0.5, gt=0, le=1, description="share of the blocks before the hidden states")

    options: Options

    def prepare(self, session: Session) -> None:
        assert session.reference is not None  # declared in the spec
        total, frames, size = 0.0, 0, self.options.micro_batch_size
        for start in range(0, len(session.forget), size):
            batch = Batch.of(session.forget[start : start + size], session.backend.device)
            hidden = session.reference.hidden(batch, self.options.depth).float()
            total += float((hidden.square().sum(-1) * batch.frame_mask).sum())
            frames += int(batch.frame_mask.sum())
        self._norm = (total / frames) ** 0.5
        direction = torch.randn(hidden.shape[-1], generator=session.generator)
        self._target = (self.options.c * self._norm * direction / direction.norm()).to(hidden.device)  # [D]

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        return self.options.gamma * self._distance(step, batch, self._target)

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        assert step.reference is not None  # declared in the spec
        return self.options.alpha * self._distance(step, batch, step.reference.hidden(batch, self.options.depth))

    def _distance(self, step: Step, batch: Batch, target: Tensor) -> Tensor:
        """Mean over a clip's frames of ‖h - target‖² / s², [N]."""
        hidden = step.backend.hidden(batch, self.options.depth).float()
        mask = batch.frame_mask
        distance = (hidden - target.float()).square().sum(-1) / self._norm**2  # [N, T]
        return (distance * mask).sum(1) / mask.sum(1)
