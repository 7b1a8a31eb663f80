"""Ascent held by elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796; for forgetting: Heng & Soh,
"Selective Amnesia", arXiv 2305.10120)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from encore.api import Batch, LossMethod, Session, Step
from encore.options import FisherOptions, TrainOptions


class Ewc(LossMethod):
    """min -L_f + λ/2 Σ F_r (θ - θ₀)² + α L_r, θ₀ the base (Kirkpatrick et al., equation 3).

    F_r is the Fisher diagonal of the retain clips at θ₀, a mean over clips of per-clip squares. α is 0 in the plain
    method; "Selective Amnesia" adds such a term, on generations of the model.
    """

    class Options(FisherOptions, TrainOptions):
        """Tuning split: up to 6e4 λ holds nothing, from 2e7 nothing is forgotten; 6e6 costs retain .4 nats less than
        2e6, and a third as much of what was forgotten stays so under relearning."""

        eval_every: int = 5  # the ascent is unbounded between two snapshots
        lam: float = Field(2e6, ge=0, description="λ: weight of the EWC penalty")
        alpha: float = Field(0.0, ge=0, description="weight of the retain loss")

    options: Options

    def prepare(self, session: Session) -> None:
        o, module = self.options, session.backend.module
        self._fisher = session.fisher(session.retain_sample(), labels=o.labels, micro_batch_size=o.micro_batch_size)
        self._base = {name: module.get_parameter(name).detach().clone() for name in self._fisher}
        if not o.alpha:
            session.retain = []  # the loop need not process clips without weight

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        return -step.backend.losses(batch)

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return self.options.alpha * step.backend.losses(batch)

    def penalty(self, step: Step) -> Tensor:
        module = step.backend.module
        pulls = [
            (fisher * (module.get_parameter(name) - self._base[name]).square()).sum()
            for name, fisher in self._fisher.items()
        ]
        return self.options.lam / 2 * torch.stack(pulls).sum()
