"""Negated task vector (Ilharco et al., "Editing Models with Task Arithmetic", arXiv 2212.04089)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from encore.api import Batch, EditMethod, LossMethod, Phase, Session, Step
from encore.options import TrainOptions


class _Memorise(LossMethod):
    """min L_f: learn the forget tracks even better."""

    def phase(self, index: int) -> Phase:
        return "forget"

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        return step.backend.losses(batch)


class TaskVector(EditMethod):
    """θ - α (θ_f - θ), where θ_f is θ fine-tuned on the forget tracks."""

    class Options(TrainOptions):
        """Tuning split: α 2 takes forget to .5 nats and costs retain .03; α 3 to 1.1 for .12, α 5 to 2.5 for .57."""

        alpha: float = Field(2.0, gt=0, description="how much of the vector is subtracted")
        steps: int = 20
        stop: Literal["target", "never"] = "never"

    options: Options

    def edit(self, session: Session) -> None:
        module = session.backend.module
        base = {name: weight.detach().clone() for name, weight in module.named_parameters()}
        session.train(_Memorise(self.options))
        with torch.no_grad():
            for name, weight in module.named_parameters():
                weight.copy_(base[name] - self.options.alpha * (weight - base[name]))
