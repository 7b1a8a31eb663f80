"""Fisher forgetting (Golatkar et al., "Eternal Sunshine of the Spotless Net", arXiv 1911.04933)."""

from __future__ import annotations

import torch
from pydantic import Field

from encore.api import EditMethod, Session
from encore.options import Options as BaseOptions


class FisherNoise(EditMethod):
    """θ ← θ + (α / F_r)^½ ∘ N(0, 1): noise where retain does not mind it (the paper's eq. 8, for a diagonal F).

    F_r is the mean Fisher diagonal over retain. Its inverse is capped: no F_r counts for less than `floor` times the
    mean over all weights.
    """

    class Options(BaseOptions):
        """Found on the tuning split; figures in `bench/RESULTS.md`."""

        alpha: float = Field(1e-8, gt=0, description="variance of the noise, times F_r")
        floor: float = Field(0.1, gt=0, description="least F_r, as a share of its mean")

    options: Options

    @torch.no_grad()
    def edit(self, session: Session) -> None:
        assert session.fisher is not None  # declared in the spec
        fisher = session.fisher(session.retain)
        mean = sum(float(value.sum()) for value in fisher.values()) / sum(value.numel() for value in fisher.values())
        for name, weight in session.backend.module.named_parameters():
            noise = torch.randn(weight.shape, generator=session.generator).to(weight)
            weight.add_(noise * (self.options.alpha / fisher[name].clamp(min=self.options.floor * mean)).sqrt())
