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
from encore.methods.encore import typical_weight
from encore.methods.encore_teacher import pick
from encore.methods.relearning_attack import RelearningAttack, moved
from encore.options import TrainOptions

CAPTIONS = 8  # other captions that a clip's target loss is the mean over
NEW = 64  # held-out clips that are measured, at most


class EncoreDiffusion(LossMethod):
    """On forget: ‖F(x_t, c) - F(x_t, c')‖² + γ max(0, ℓ - L); on retain: α L_r.

    F is the network's prediction at a noise level, L its mean squared error, c the clip's caption and c' that of a
    retain track. The second prediction has no gradient: under another caption the model hardly recognises the clip, and
    it forgets with the model. The second term raises the loss to the target ℓ, and no further.

    ℓ is the clip's loss under base with other captions, times the ratio of held-out music's loss with its own captions
    to its loss with others. It tells how difficult the clip is without what its caption retrieves; on a model that was
    trained without the tracks the two agree (figures: the README of encore-diffusers).

    A share of the steps is attacked, as in `encore`: the loss is computed at the weights of a copy that was trained on
    the step's clips for a few steps, and ℓ is multiplied by the share of its loss that held-out music keeps under the
    same attack on base. Attacks are at `attack_rate` times the typical weight, or at `ATTACKER` where that is higher
    and relearns more. The peak rate is `rate` times the model's typical weight; the schedule is `adaptive`.
    """

    class Options(TrainOptions):
        """Tuned on a small Stable Audio; rates are relative to the model's weights."""

        steps: int = 300
        lr: float | None = Field(None, gt=0, le=1e6, description="peak learning rate of AdamW; default: from the model")
        rate: float = Field(0.015, gt=0, description="peak learning rate as a share of the model's typical weight")
        schedule: Literal["linear", "cosine", "constant", "adaptive"] = "adaptive"
        stop: Literal["target", "never"] = "never"
        eval_every: int = 15
        decay_steps: int = 75
        attack_share: float = Field(0.5, ge=0, le=1, description="share of steps under attack")
        attack_steps: int = Field(8, ge=1, description="steps of relearning in an attack, at most")
        attack_rate: float = Field(
            0.012, gt=0, description="learning rate of attacks, as a share of the model's typical weight"
        )
        gamma: float = Field(1.0, ge=0, description="weight of the gap between a clip's loss and its target")
        alpha: float = Field(5.0, ge=0, description="weight of the retain loss")

    options: Options

    @property
    def trained_copies(self) -> int:
        return int(self.options.attack_share > 0)

    def prepare(self, session: Session) -> None:
        backend = session.backend
        self._typical = typical_weight(backend.module)
        session.lr = self.options.rate * self._typical
        self._captions = sorted({clip.caption for clip in session.retain_sample()})
        new = list(session.holdout)[:NEW]
        ratio = 1.0
        if new:
            ratio = float((mean_losses(backend, new) / self._of_others(backend, new)).mean())
        levels = ratio * self._of_others(backend, session.forget)
        levels = torch.maximum(levels, mean_losses(backend, session.forget))
        self._levels = dict(zip(session.forget, levels, strict=True))
        of_track: dict[str, list[float]] = {}
        for clip, level in self._levels.items():
            of_track.setdefault(clip.track, []).append(float(level))
        session.target_nll = {track: statistics.fmean(values) for track, values in of_track.items()}
        if self.options.lr is None:
            session.chosen["lr"] = f"{session.lr:.2g}: {self.options.rate:g} of the typical weight {self._typical:.2g}"
        self._attack = RelearningAttack(
            lr=self.options.attack_rate * self._typical, steps=self.options.attack_steps,
            size=self.options.micro_batch_size, measure=mean_losses,
        )  # fmt: skip
        if self.options.attack_share:
            most = self.options.forget_batch_size
            together = min(len(session.forget), most)
            self._attack.calibrate(session, new or session.retain_sample(), together=together, count=most)

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        clips = step.forget or batch.clips
        captions, (weights, kept_share) = step.once(
            "forget",
            lambda: (
                self._drawn(step, clips),
                self._attack.maybe_attack(step, clips, share=self.options.attack_share, size=len(batch)),
            ),
        )
        others = [Clip(clip.track, captions[clip], clip.codes) for clip in batch.clips]
        strange = Batch.of(others, batch.codes.device, noise_index=batch.noise_index)
        with moved(step.backend.module, weights):
            outputs, targets = step.backend.predictions(batch)
            with torch.no_grad():
                teacher, _ = step.backend.predictions(strange)
        errors, losses = (
            (outputs - wanted).square().mean((1, 2)).sum(1) / batch.frames  # beyond them both are 0
            for wanted in (teacher, targets)
        )
        levels = torch.stack([self._levels[clip] for clip in batch.clips]) * kept_share
        return errors + self.options.gamma * (levels - losses).relu()

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return self.options.alpha * step.backend.losses(batch)

    def ready(self, step: Step) -> bool:
        """Whether relearning lowers the loss of the forget clips no further than that of new music."""
        if not self.options.attack_share:
            return True
        return self._attack.resisted(step, self._levels, self.options.forget_batch_size)

    def _of_others(self, backend: Backend, clips: Sequence[Clip]) -> Tensor:
        """Mean loss of each clip with other captions, [N]."""
        others = [self._others(clip) for clip in clips]
        count = min(CAPTIONS, *map(len, others))
        losses = []
        for i in range(count):
            captions = [some[i * len(some) // count] for some in others]
            strange = [Clip(clip.track, caption, clip.codes) for clip, caption in zip(clips, captions, strict=True)]
            losses.append(mean_losses(backend, strange))
        return torch.stack(losses).mean(0)

    def _others(self, clip: Clip) -> list[str]:
        """The captions of retain but a clip's own; that one where there is no other."""
        return [caption for caption in self._captions if caption != clip.caption] or [clip.caption]

    def _drawn(self, step: Step, clips: Sequence[Clip]) -> dict[Clip, str]:
        return {clip: pick(self._others(clip), step.generator) for clip in clips}


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
