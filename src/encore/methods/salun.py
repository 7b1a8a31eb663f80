"""SalUn (Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency", arXiv 2310.12508)."""

from __future__ import annotations

import torch
from pydantic import Field

from encore.api import Session
from encore.curvature import backend_gradient
from encore.methods.rl import RandomLabels


class SalUn(RandomLabels):
    """Random labelling on the weights that forget depends on most: the top share by |Σ_n g_n| over forget (eq. 3).

    All other weights stay as they are, bit for bit.
    """

    class Options(RandomLabels.Options):
        """Found on the tuning split; figures in `bench/RESULTS.md`."""

        share: float = Field(0.5, gt=0, le=1, description="share of the weights that are trained")

    options: Options

    def prepare(self, session: Session) -> None:
        super().prepare(session)
        size = self.options.micro_batch_size
        gradient = backend_gradient(session.backend, session.forget, micro_batch_size=size)
        every = torch.cat([value.abs().flatten() for value in gradient.values()])
        limit = every.topk(max(1, round(self.options.share * len(every)))).values[-1]
        self.trainable = {name: value.abs() >= limit for name, value in gradient.items()}
