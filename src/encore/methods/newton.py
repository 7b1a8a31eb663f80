"""A step of Newton's method away from forget, the Hessian's diagonal taken to be the Fisher's (after Guo et al.,
"Certified Data Removal from Machine Learning Models", arXiv 1911.03030)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from encore.api import EditMethod, Session
from encore.curvature import mean_gradient
from encore.methods.fisher_noise import mean_over_weights
from encore.options import FisherOptions


class Newton(EditMethod):
    """θ += η (g_f - ρ g_r) / (F_r + ε), one step or few.

    g_f and g_r are mean gradients of the NLL on forget and retain, taken anew for each step; F_r is the Fisher diagonal
    of the retain clips at the base, a mean over clips of per-clip squares: the curvature of what remains. ε is a share
    of F_r's mean over all weights, so that it means the same on any model. Steps end when the forget clips' mean NLL is
    at the unseen level, where there is one.
    """

    class Options(FisherOptions):
        """Tuning split: reaches the unseen level in ten steps, as growth is exponential, and takes retain along; with
        ρ = 1 nothing is forgotten, since music that is not known by heart makes up nearly all of g_r."""

        labels: Literal["empirical", "sampled"] = "sampled"
        steps: int = Field(10, ge=1, description="steps at most")
        eta: float = Field(1e-6, gt=0, description="step size")
        rho: float = Field(0.0, ge=0, description="weight of retain's gradient; 0 saves its passes")
        epsilon: float = Field(1.0, gt=0, description="damping, as a share of the Fisher's mean over weights")

    options: Options

    def edit(self, session: Session) -> None:
        o, backend = self.options, session.backend
        fisher = session.fisher(session.retain, labels=o.labels, micro_batch_size=o.micro_batch_size)
        damping = o.epsilon * mean_over_weights(fisher)
        for _ in range(o.steps):
            ascent, nll = mean_gradient(backend, session.forget, micro_batch_size=o.micro_batch_size)
            if session.level is not None and nll >= session.level:
                return
            if o.rho:
                retain, _ = mean_gradient(backend, session.retain, micro_batch_size=o.micro_batch_size)
                ascent = {name: gradient - o.rho * retain[name] for name, gradient in ascent.items()}
            with torch.no_grad():
                for name, gradient in ascent.items():
                    backend.module.get_parameter(name).add_(o.eta * gradient / (fisher[name] + damping))
