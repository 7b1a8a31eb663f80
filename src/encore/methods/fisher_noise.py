"""Noise on weights that retain does not depend on (Golatkar et al., "Eternal Sunshine", arXiv 1911.04933)."""

from __future__ import annotations

import torch
from pydantic import Field

from encore.api import EditMethod, Session
from encore.curvature import mean_over_weights
from encore.options import FisherOptions


class FisherNoise(EditMethod):
    """θ += (α / F_r)^½ · N(0, 1), F_r no less than its mean over all weights / cap. No training.

    F_r is the Fisher diagonal of the retain clips, a mean over clips of per-clip squares. The paper derives F^-¼; the
    implementations used for comparisons take F^-½, as here. The cap, relative to the mean and so independent of the
    model, limits the noise on weights that retain does not use. Forget clips are not used.
    """

    class Options(FisherOptions):
        """Tuning split: retain always loses what forget loses, or more; this α costs it .13 nats per token."""

        alpha: float = Field(1e-10, gt=0, description="variance of the noise is α / F")
        cap: float = Field(10.0, gt=0, description="1 / F is at most this many times 1 / mean F")

    options: Options

    @torch.no_grad()
    def edit(self, session: Session) -> None:
        o = self.options
        fisher = session.fisher(session.retain_sample(), labels=o.labels, micro_batch_size=o.micro_batch_size)
        least = mean_over_weights(fisher) / o.cap
        for name, value in fisher.items():
            weight = session.backend.module.get_parameter(name)
            noise = torch.randn(weight.shape, generator=session.generator).to(weight.device)
            weight.add_((o.alpha / value.clamp(min=least)).sqrt() * noise)
