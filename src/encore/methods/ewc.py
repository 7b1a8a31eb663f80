"""Ascent under elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from encore.api import Batch, LossMethod, Session, Step
from encore.options import TrainOptions


class Ewc(LossMethod):
    """min -L_f + λ Σ_i F_r,i (θ_i - θ₀,i)² / F̄_r: what retain needs is held in its place, and retain is never played.

    F_r is the mean Fisher diagonal over retain at the base θ₀, divided by its mean over all weights, so that λ means
    the same in every model.
    """

    class Options(TrainOptions):
        """Stopped a track at the unseen level; figures in `bench/RESULTS.md`."""

        eval_every: int = 5  # nothing else bounds the ascent
        strength: float = Field(10.0, ge=0, description="λ: how firmly weights that retain needs are held")

    options: Options
    uses_retain = False

    def prepare(self, session: Session) -> None:
        assert session.fisher is not None  # declared in the spec
        fisher = session.fisher(session.retain)
        mean = sum(float(value.sum()) for value in fisher.values()) / sum(value.numel() for value in fisher.values())
        self._hold = {name: value / mean for name, value in fisher.items()}
        self._start = {name: weight.detach().clone() for name, weight in session.backend.module.named_parameters()}

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        held = [
            (self._hold[name] * (weight - self._start[name]).square()).sum()
            for name, weight in step.backend.module.named_parameters()
        ]
        return self.options.strength * torch.stack(held).sum() - step.backend.losses(batch)
