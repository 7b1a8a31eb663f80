"""Fine-tuning on retain only."""

from __future__ import annotations

from typing import Literal

from encore.api import LossMethod
from encore.options import TrainOptions


class FineTune(LossMethod):
    """min L_r."""

    class Options(TrainOptions):
        stop: Literal["target", "never"] = "never"
