"""Subtracted importance-sampled scores (Alberti et al., "Data Unlearning in Diffusion Models", arXiv 2503.01034)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from encore.api import Batch, Clip, LossMethod, Step
from encore.options import TrainOptions
from encore_diffusers.base import Rows, diffusion


class Siss(LossMethod):
    """On forget: w_x ‖F(m) - v(m; x)‖² - s w_a ‖F(m) - v(m; a)‖², plus α L_r on retain.

    a is a forget clip, x a retain clip drawn for it, and the network's input m is noised from x with probability 1 - λ
    and from a with λ: w_x = q(m | x) / ((1 - λ) q(m | x) + λ q(m | a)), w_a alike. v(m; ·) is the training target if m
    was noised from that clip. One pass trains toward the retain clip and away from the forget clip (eq. 5); s stands
    for the paper's (1 + s) k / (n - k), which for a short list is nearly 0. The caption is the forget clip's.
    """

    class Options(TrainOptions):
        """Tuned on a small Stable Audio; see the README."""

        steps: int = 200
        eval_every: int = 5
        mixture: float = Field(0.5, gt=0, lt=1, description="λ: share of inputs noised from the forget clip")
        strength: float = Field(0.3, ge=0, description="s: weight of the error at the forget clip")
        alpha: float = Field(5.0, ge=0, description="weight of the retain loss")

    options: Options

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        backend, share = diffusion(step.backend, "siss"), self.options.mixture
        clips = step.forget or batch.clips
        partners, from_forget = step.once("partners", lambda: self._draw(step, clips))
        frames = batch.frames.tolist()
        places = [clips.index(clip) for clip in batch.clips]

        def ends(rows: Rows) -> tuple[Tensor, Tensor]:
            """The input m and the other end x, each [n, K, W]."""
            kept = torch.stack([backend.fitted(partners[places[i]], frames[i]) for i in rows.places])
            forgets = from_forget[[places[i] for i in rows.places], rows.stratum].to(kept.device)
            source = torch.where(forgets[:, None, None], rows.latents, kept)
            return backend.objective.noisy(source, rows.noise, rows.level), kept

        def loss(rows: Rows, prediction: Tensor) -> Tensor:
            noisy, kept = ends(rows)
            noises = [backend.objective.noise_between(noisy, end, rows.level) for end in (kept, rows.latents)]
            densities = torch.stack([-noise.double().square().sum((1, 2)) / 2 for noise in noises])  # log, [2, n]
            weights = (densities - densities.amax(0)).exp()
            weights = weights / ((1 - share) * weights[0] + share * weights[1])
            errors = [
                (prediction - backend.objective.target(end, noise, rows.level)).square().mean(1)
                for end, noise in zip((kept, rows.latents), noises, strict=True)
            ]
            toward, away = weights.to(prediction)[:, :, None]
            return toward * errors[0] - self.options.strength * away * errors[1]

        return backend.per_frame(batch, loss, lambda rows: ends(rows)[0])

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return self.options.alpha * step.backend.losses(batch)

    def _draw(self, step: Step, clips: Sequence[Clip]) -> tuple[list[Tensor], Tensor]:
        """A retain clip's latents for each forget clip, and which inputs [N, levels] are noised from the latter."""
        kept = step.retain
        chosen = torch.randint(len(kept), (len(clips),), generator=step.generator).tolist()
        drawn = torch.rand(len(clips), diffusion(step.backend, "siss").levels, generator=step.generator)
        return [kept[i].codes for i in chosen], drawn < self.options.mixture
