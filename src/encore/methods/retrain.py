"""Training from scratch without the forget tracks: the reference for every other method."""

from __future__ import annotations

from typing import Literal

from encore.api import EditMethod, LossMethod, MethodSpec, Session
from encore.options import TrainOptions


class _RetainTraining(LossMethod):
    """min L_r."""

    spec = MethodSpec("retrain", "training on retain", "", needs=frozenset({"retain"}))


class Retrain(EditMethod):
    """Draw new trainable weights, then min L_r. As costly as training."""

    class Options(TrainOptions):
        steps: int = 600
        lr: float = 2e-3
        batch_size: int = 14
        warmup: int = 60
        weight_decay: float = 0.05
        schedule: Literal["linear", "cosine", "constant"] = "cosine"
        dropout: bool = True
        eval_every: int = 100
        stop: Literal["target", "never"] = "never"

    options: Options

    def edit(self, session: Session) -> None:
        session.backend.reinitialise(session.seed)
        session.train(_RetainTraining(self.options))
