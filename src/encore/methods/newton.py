"""A step of Newton's method away from forget, the Hessian's diagonal taken to be the Fisher's (after Guo et al.,
"Certified Data Removal from Machine Learning Models", arXiv 1911.03030)."""

from __future__ import annotations

import torch
from pydantic import Field

from encore.api import EditMethod, Session
from encore.curvature import mean_gradient, mean_over_weights
from encore.options import FisherOptions

TOLERANCE = 0.05  # how far past the held-out NLL a step may end, as a share of it


class Newton(EditMethod):
    """θ += η (g_f - ρ g_r) / (F_r + ε), one step or few.

    g_f and g_r are mean gradients of the NLL on forget and retain, recomputed at each step; F_r is the Fisher diagonal
    of the retain clips at the base, a mean over clips of per-clip squares. ε is a share of F_r's mean over all weights,
    and so independent of the model. With a held-out NLL, steps end when the forget clips' mean NLL reaches it; the NLL
    grows exponentially, so a step that exceeds it is undone, and half of it tried.
    """

    class Options(FisherOptions):
        """Tuning split: at the held-out NLL in some ten steps and a few halves, and takes retain along; with ρ = 1
        nothing is forgotten, since music that is not memorised makes up nearly all of g_r."""

        steps: int = Field(20, ge=1, description="steps at most, those taken back included")
        eta: float = Field(1e-6, gt=0, description="step size")
        rho: float = Field(0.0, ge=0, description="weight of retain's gradient; 0 saves its passes")
        epsilon: float = Field(1.0, gt=0, description="damping, as a share of the Fisher's mean over weights")

    options: Options

    def edit(self, session: Session) -> None:
        o, backend = self.options, session.backend
        fisher = session.fisher(session.retain_sample(), labels=o.labels, micro_batch_size=o.micro_batch_size)
        damping = o.epsilon * mean_over_weights(fisher)
        eta, last = o.eta, None
        for _ in range(o.steps):
            ascent, nll = mean_gradient(backend, session.forget, micro_batch_size=o.micro_batch_size)
            if session.holdout_nll is not None and not nll < session.holdout_nll:  # not finite is too far as well
                if last is None or nll <= (1 + TOLERANCE) * session.holdout_nll:
                    return
                weights, ascent = last
                backend.module.load_state_dict(weights)
                eta /= 2
            else:
                if o.rho:
                    retain, _ = mean_gradient(backend, session.retain_sample(), micro_batch_size=o.micro_batch_size)
                    ascent = {name: gradient - o.rho * retain[name] for name, gradient in ascent.items()}
                last = {name: value.clone() for name, value in backend.module.state_dict().items()}, ascent
            with torch.no_grad():
                for name, gradient in ascent.items():
                    backend.module.get_parameter(name).add_(eta * gradient / (fisher[name] + damping))
