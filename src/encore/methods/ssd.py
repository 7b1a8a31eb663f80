"""Selective synaptic dampening (Foster et al., AAAI 2024, arXiv 2308.07707)."""

from __future__ import annotations

import torch
from pydantic import Field

from encore.api import EditMethod, Session
from encore.options import FisherOptions


class Ssd(EditMethod):
    """Where F_f > α F_D: θ ·= min(λ F_D / F_f, 1). No training.

    F_f is the Fisher diagonal of the forget clips, F_D that of all that was learnt, forget and retain, each a mean over
    clips of per-clip squares; the paper's α and λ are of this kind. F_f / F_D is at most the number of all clips over
    that of the forget clips, and an α from there on changes nothing.
    """

    class Options(FisherOptions):
        alpha: float = Field(1.0, gt=0, description="threshold on F_forget / F above which a weight is dampened")
        lam: float = Field(1.0, gt=0, description="λ: dampened weights keep λ F_D / F_f, at most 1")

    options: Options

    @torch.no_grad()
    def edit(self, session: Session) -> None:
        o = self.options
        forget = session.fisher(session.forget, labels=o.labels, micro_batch_size=o.micro_batch_size)
        retain = session.fisher(session.retain_sample(), labels=o.labels, micro_batch_size=o.micro_batch_size)
        share = len(session.forget) / (len(session.forget) + len(session.retain))
        for name, important in forget.items():
            everything = share * important + (1 - share) * retain[name]
            kept = (o.lam * everything / important).clamp(max=1)
            kept = torch.where(
                important > o.alpha * everything, kept, 1
            )  # NaN where important is 0, which is not taken
            session.backend.module.get_parameter(name).mul_(kept)
