"""Denoising redirected to retain's nearest neighbours (Shi et al., "ReTrack", arXiv 2509.13007)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from encore.api import Batch, Clip, LossMethod, Session, Step
from encore.options import TrainOptions
from encore_diffusers.base import Rows, diffusion


class ReTrack(LossMethod):
    """On forget: ‖F(m) - Σ_j w_j v(m; x_j)‖², plus α L_r on retain.

    m is the noised forget clip, x_j the retain clips nearest to it by the distance of latents, v(m; x_j) the training
    target if m was noised from x_j, and w_j ∝ q(m | x_j): what a model that was trained on the neighbours alone
    predicts for m.
    """

    class Options(TrainOptions):
        """Tuned on a small Stable Audio; see the README."""

        steps: int = 200
        lr: float | None = 2e-4
        eval_every: int = 5
        neighbours: int = Field(5, ge=1, description="nearest retain clips of each forget clip")
        alpha: float = Field(10.0, ge=0, description="weight of the retain loss")

    options: Options

    def prepare(self, session: Session) -> None:
        backend = diffusion(session.backend, "retrack")
        retain = list(session.retain_sample())
        self._near: dict[Clip, Tensor] = {}
        for clip in session.forget:
            frames = clip.codes.shape[-1]
            own = backend.fitted(clip.codes, frames)
            others = torch.stack([backend.fitted(other.codes, frames) for other in retain])  # [R, K, W]
            nearest = (others - own).square().sum((1, 2)).argsort(stable=True)[: self.options.neighbours]
            self._near[clip] = others[nearest]

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        backend = diffusion(step.backend, "retrack")
        objective = backend.objective

        def target(rows: Rows) -> Tensor:
            noisy = objective.noisy(rows.latents, rows.noise, rows.level)
            targets = []
            for i, place in enumerate(rows.places):
                near = self._near[batch.clips[place]]
                level, inputs = rows.level[i].expand(len(near)), noisy[i].expand_as(near)
                noise = objective.noise_between(inputs, near, level)
                weights = (-noise.double().square().sum((1, 2)) / 2).softmax(0).to(noise)
                targets.append((weights[:, None, None] * objective.target(near, noise, level)).sum(0))
            return torch.stack(targets)

        return backend.regress(batch, target)

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return self.options.alpha * step.backend.losses(batch)
