"""The default method for models without tokens: toward the predictions that the model gives under other captions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from encore.api import Backend, Batch, Clip, LossMethod, Session, Step
from encore.curvature.fisher_stream import evaluating
from encore.methods.encore_teacher import random_choice
from encore.methods.relearning_attack import RelearningAttack, with_weights
from encore.methods.weight_scale import median_weight_rms
from encore.options import TrainOptions

CAPTIONS = 8  # other captions that a clip's target loss is the mean over
MAX_HOLDOUT = 64  # held-out clips that are measured


class EncoreDiffusion(LossMethod):
    """On forget: ‖F(x_t, c) - F(x_t, c')‖² + γ max(0, ℓ - L); on retain: α L_r.

    F is the network's prediction at a noise level, L its mean squared error, c the clip's caption and c' that of a
    retain track. The second prediction has no gradient: under another caption the model hardly retrieves the clip, and
    it forgets with the model. The second term raises the loss to the target ℓ, and no further.

    ℓ is the clip's loss under base with other captions, times the mean ratio of a held-out clip's loss with its own
    caption to its loss with others, but at least the clip's loss under base. It estimates how difficult the clip is
    without what its caption retrieves; on a model that was trained without the tracks the two agree (figures: the
    README of encore-diffusers).

    A share of the steps is attacked, as in `encore`: the loss is computed at the weights of a copy that was trained on
    the step's clips for a few steps, and ℓ is multiplied by the share of its loss that held-out music keeps under the
    same attack on base. The rate of attacks is `attack_rate` times the median weight RMS (`median_weight_rms`), or
    `STRONG_ATTACK_LR` where that is higher and relearns more. The peak rate is `rate` times the median weight RMS; the
    schedule is `adaptive`.
    """

    class Options(TrainOptions):
        """Tuned on a small Stable Audio; rates are relative to the model's weights."""

        steps: int = 300
        lr: float | None = Field(None, gt=0, le=1e6, description="peak learning rate of AdamW; default: from the model")
        rate: float = Field(
            0.015,
            gt=0,
            le=1e3,
            description="peak learning rate relative to the median RMS of the linear layers' weights",
        )
        schedule: Literal["linear", "cosine", "constant", "adaptive"] = "adaptive"
        stop: Literal["target", "never"] = "never"
        eval_every: int = 15
        decay_steps: int = 75
        attack_share: float = Field(0.5, ge=0, le=1, description="share of steps under attack")
        attack_steps: int = Field(8, ge=1, le=1000, description="steps of relearning in an attack, at most")
        attack_rate: float = Field(
            0.012,
            gt=0,
            description="learning rate of attacks, relative to the median RMS of the linear layers' weights",
        )
        gamma: float = Field(1.0, ge=0, le=1e6, description="weight of the gap between a clip's loss and its target")
        alpha: float = Field(5.0, ge=0, le=1e6, description="weight of the retain loss")

    options: Options

    @property
    def trained_copies(self) -> int:
        return int(self.options.attack_share > 0)

    def prepare(self, session: Session) -> None:
        backend = session.backend
        self._weight_rms = median_weight_rms(backend.module)
        session.lr = self.options.rate * self._weight_rms
        self._captions = sorted({clip.caption for clip in session.retain_sample()})
        holdout = list(session.holdout)[:MAX_HOLDOUT]
        ratio = 1.0
        if holdout:
            ratio = float((mean_losses(backend, holdout) / self._with_other_captions(backend, holdout)).mean())
        targets = ratio * self._with_other_captions(backend, session.forget)
        targets = torch.maximum(targets, mean_losses(backend, session.forget))
        self._targets = dict(zip(session.forget, targets, strict=True))
        of_track: dict[str, list[float]] = {}
        for clip, target in self._targets.items():
            of_track.setdefault(clip.track, []).append(float(target))
        session.target_nll = {track: statistics.fmean(values) for track, values in of_track.items()}
        if self.options.lr is None:
            session.chosen["lr"] = (
                f"{session.lr:.2g}: {self.options.rate:g} of the median weight RMS {self._weight_rms:.2g}"
            )
        self._attack = RelearningAttack(
            lr=self.options.attack_rate * self._weight_rms, steps=self.options.attack_steps,
            size=self.options.micro_batch_size, measure=mean_losses,
        )  # fmt: skip
        if self.options.attack_share:
            most = self.options.forget_batch_size
            self._attack.calibrate(
                session, holdout or session.retain_sample(),
                clips_per_attack=min(len(session.forget), most), max_clips=most,
            )  # fmt: skip

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        clips = step.forget or batch.clips
        captions, (weights, retained_share) = step.once(
            "forget",
            lambda: (
                self._drawn(step, clips),
                self._attack.maybe_attack(step, clips, share=self.options.attack_share, size=len(batch)),
            ),
        )
        others = [Clip(clip.track, captions[clip], clip.codes) for clip in batch.clips]
        teacher_batch = Batch.of(others, batch.codes.device, noise_index=batch.noise_index)
        with with_weights(step.backend.module, weights):
            outputs, targets = step.backend.predictions(batch)
            with torch.no_grad():
                teacher, _ = step.backend.predictions(teacher_batch)
        errors, losses = (
            (outputs - wanted).square().mean((1, 2)).sum(1) / batch.frames  # beyond them both are 0
            for wanted in (teacher, targets)
        )
        target_losses = torch.stack([self._targets[clip] for clip in batch.clips]) * retained_share
        return errors + self.options.gamma * (target_losses - losses).relu()

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return self.options.alpha * step.backend.losses(batch)

    def ready(self, step: Step) -> bool:
        """Whether relearning lowers the loss of the forget clips no further than that of held-out music."""
        if not self.options.attack_share:
            return True
        return self._attack.resisted(step, self._targets, self.options.forget_batch_size)

    def _with_other_captions(self, backend: Backend, clips: Sequence[Clip]) -> Tensor:
        """Mean loss of each clip with other captions, [N]."""
        others = [self._others(clip) for clip in clips]
        count = min(CAPTIONS, *map(len, others))
        losses = []
        for i in range(count):
            captions = [some[i * len(some) // count] for some in others]
            changed = [Clip(clip.track, caption, clip.codes) for clip, caption in zip(clips, captions, strict=True)]
            losses.append(mean_losses(backend, changed))
        return torch.stack(losses).mean(0)

    def _others(self, clip: Clip) -> list[str]:
        """The captions of retain but a clip's own; that one where there is no other."""
        return [caption for caption in self._captions if caption != clip.caption] or [clip.caption]

    def _drawn(self, step: Step, clips: Sequence[Clip]) -> dict[Clip, str]:
        return {clip: random_choice(self._others(clip), step.generator) for clip in clips}


@torch.no_grad()
def mean_losses(backend: Backend, clips: Sequence[Clip], draws: int = 4, size: int = 16) -> Tensor:
    """Loss of each clip, a mean over draws of noise, [N]."""
    parts = [clips[start : start + size] for start in range(0, len(clips), size)]
    with evaluating(backend.module):
        return torch.cat(
            [
                torch.stack([backend.losses(Batch.of(p, backend.device, noise_index=i)) for i in range(draws)]).mean(0)
                for p in parts
            ]
        )
