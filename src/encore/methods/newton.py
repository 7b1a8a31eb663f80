"""Newton-like unlearning: the influence of forget on the weights, taken back (Golatkar et al., arXiv 1911.04933;
Guo et al., "Certified Data Removal", arXiv 1911.03030), with a diagonal Fisher for the Hessian."""

from __future__ import annotations

import torch
from pydantic import Field

from encore.api import EditMethod, Session
from encore.curvature import backend_gradient
from encore.options import Options as BaseOptions


class Newton(EditMethod):
    """θ ← θ + η (g_f - ρ g_r) / (F + ε), a few times over.

    g_f and g_r are the gradients of the mean loss on forget and on retain, taken anew at each step. F is the mean
    Fisher diagonal over forget and retain at the base, ε = `damping` times its mean over all weights.
    """

    class Options(BaseOptions):
        """Found on the tuning split; figures in `bench/RESULTS.md`."""

        steps: int = Field(5, ge=1, description="how often a step is taken")
        eta: float = Field(0.01, gt=0, description="length of a step")
        rho: float = Field(1.0, ge=0, description="weight of retain's gradient")
        damping: float = Field(1.0, gt=0, description="ε, as a multiple of the mean of F")
        micro_batch_size: int = Field(16, ge=1, description="clips a pass; fewer save memory, change nothing else")

    options: Options

    def edit(self, session: Session) -> None:
        assert session.fisher is not None  # declared in the spec
        options, backend = self.options, session.backend
        fisher = session.fisher([*session.forget, *session.retain])
        mean = sum(float(value.sum()) for value in fisher.values()) / sum(value.numel() for value in fisher.values())
        for _ in range(options.steps):
            forget = backend_gradient(backend, session.forget, micro_batch_size=options.micro_batch_size)
            retain = backend_gradient(backend, session.retain, micro_batch_size=options.micro_batch_size)
            with torch.no_grad():
                for name, weight in backend.module.named_parameters():
                    direction = forget[name] - options.rho * retain[name]
                    weight.add_(options.eta * direction / (fisher[name] + options.damping * mean))
