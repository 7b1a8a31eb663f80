"""Selective synaptic dampening (Foster et al., "Fast Machine Unlearning Without Retraining", arXiv 2308.07707)."""

from __future__ import annotations

import torch
from pydantic import Field

from encore.api import EditMethod, Session
from encore.options import Options as BaseOptions


class Ssd(EditMethod):
    """Where F_f > α F_D: θ ← min(λ F_D / F_f, 1) θ. No training.

    F_f and F_D are Fisher diagonals over forget, and over forget and retain together (the paper's eqs. 6 and 7), each
    the mean over its clips, so that α does not depend on how many there are.
    """

    class Options(BaseOptions):
        """Found on the tuning split; figures in `bench/RESULTS.md`."""

        alpha: float = Field(2.0, gt=0, description="how much more a weight must matter to forget to be dampened")
        dampening: float = Field(1.0, gt=0, description="λ: how little is left of a dampened weight")

    options: Options

    @torch.no_grad()
    def edit(self, session: Session) -> None:
        assert session.fisher is not None  # declared in the spec
        forget, everything = session.fisher(session.forget), session.fisher([*session.forget, *session.retain])
        for name, weight in session.backend.module.named_parameters():
            chosen = forget[name] > self.options.alpha * everything[name]
            factor = (self.options.dampening * everything[name] / forget[name]).clamp(max=1)
            weight.copy_(torch.where(chosen, factor * weight, weight))
