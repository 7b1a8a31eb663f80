"""Encore's own method: each track is forgotten toward what the model says of music that it never heard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from encore.api import Backend, Batch, Clip, LossMethod, Session, Step
from encore.losses import clip_mean, kl_divergence, token_logprobs
from encore.options import TrainOptions

KNOWN = 0.5  # a retain clip at less than this share of the unseen level is known by heart


class Encore(LossMethod):
    """On forget: KL(teacher ‖ model) + γ mean_k max(0, ℓ_k - NLL_k), at a high learning rate, with dropout.

    The teacher is the model itself (no gradient) where it can't well recognise the track: the clip begins up to
    `shift_seconds` later than it was learnt, and its caption is that of another track. As the model forgets, so does
    the teacher, until both say what they would of unheard music. What memory the teacher still shares is taken out by
    the second term: of each clip, the NLL of codebook k is lifted to ℓ_k, and no further. ℓ_k is what unseen music
    costs under the base model; each codebook has its own, since the first is far easier to guess than the last.

    Retain clips known by heart keep their likelihood. Of the others, crops keep the base's distribution, half of them
    turned into another clip midway and under a caption that is not theirs: so the model stays as unsure of music that
    it does not know as the base is. The rate is high because low ones only cover a memory: it then comes back after a
    few steps of training (see `bench/RESULTS.md`).
    """

    class Options(TrainOptions):
        """Found on the tuning split alone; figures in `bench/RESULTS.md`."""

        steps: int = 100
        lr: float = 5e-3
        batch_size: int = 10
        forget_batch_size: int = 4
        schedule: Literal["linear", "cosine", "constant"] = "cosine"
        dropout: bool = True
        eval_every: int = 50
        stop: Literal["target", "never"] = "never"
        shift_seconds: float = Field(0.8, gt=0, description="most that the teacher's clip begins later")
        gamma: float = Field(0.2, ge=0, description="weight of what a clip's NLL lacks to the unseen level")
        alpha: float = Field(2.0, ge=0, description="weight of the retain loss")
        known_share: float = Field(0.55, gt=0, lt=1, description="share of retain clips drawn that are known by heart")
        crop: float = Field(0.5, ge=0, lt=1, description="most of an unmemorised retain clip that is cut off its start")
        mix: float = Field(0.5, ge=0, le=1, description="share of those crops that are mixed with another clip")

    options: Options

    def prepare(self, session: Session) -> None:
        assert session.reference is not None  # declared in the spec
        reference, clips = session.reference, list(session.retain)
        nll: list[float] = []
        for start in range(0, len(clips), self.options.micro_batch_size):
            batch = Batch.of(clips[start : start + self.options.micro_batch_size], session.backend.device)
            nll += reference.nll(batch).tolist()
        limit = KNOWN * (session.level if session.level is not None else max(nll))
        self._known = {clip for clip, value in zip(clips, nll, strict=True) if value < limit}
        self._heard = [clip for clip in clips if clip not in self._known]
        self._captions = [clip.caption for clip in clips]
        # Without a holdout, what base has heard and not learnt by heart is the nearest to unseen music that there is.
        unseen = session.holdout or self._heard
        self._levels = codebook_nll(session.backend, unseen, self.options.micro_batch_size) if unseen else None
        if self._known and self._heard:
            share = self.options.known_share
            repeats = round(share / (1 - share) * len(self._heard) / len(self._known))
            session.retain = self._heard + [clip for clip in clips if clip in self._known] * max(1, repeats)

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        shortest = int(batch.frames.min())
        most = min(int(self.options.shift_seconds * step.backend.frame_rate), shortest // 2)
        shift = _draw(most, step.generator) + 1
        strange = Batch.of(
            [Clip(clip.track, self._other_caption(step.generator), clip.codes[:, shift:]) for clip in batch.clips],
            batch.codes.device,
        )
        mask = step.backend.token_mask(strange)
        teacher = _without_dropout(step.backend, strange)
        logits = step.backend.logits(batch)[:, :, shift:]
        loss = clip_mean(kl_divergence(teacher, logits, mask), mask)
        if self._levels is not None:
            nll = -token_logprobs(logits, strange.codes, mask).sum(2) / mask.sum(2).clamp(min=1)  # [N, K]
            loss = loss + self.options.gamma * (self._levels - nll).relu().mean(1)
        return loss

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        assert step.reference is not None  # declared in the spec
        losses: list[Tensor] = []
        known = [i for i, clip in enumerate(batch.clips) if clip in self._known]
        heard = [i for i, clip in enumerate(batch.clips) if clip not in self._known]
        if known:
            losses.append(step.backend.losses(Batch.of([batch.clips[i] for i in known], batch.codes.device)))
        if heard:
            crops = Batch.of([self._crop(batch.clips[i], step.generator) for i in heard], batch.codes.device)
            mask = step.backend.token_mask(crops)
            kl = kl_divergence(step.reference.logits(crops), step.backend.logits(crops), mask)
            losses.append(clip_mean(kl, mask))
        order = torch.tensor(known + heard, device=batch.codes.device).argsort()
        return self.options.alpha * torch.cat(losses)[order]

    def _other_caption(self, generator: torch.Generator) -> str:
        return self._captions[_draw(len(self._captions), generator)]

    def _crop(self, clip: Clip, generator: torch.Generator) -> Clip:
        start = _draw(int(self.options.crop * clip.codes.shape[-1]), generator)
        caption, codes = clip.caption, clip.codes[:, start:]
        if torch.rand((), generator=generator) < self.options.mix:
            other = self._heard[_draw(len(self._heard), generator)].codes[:, start:]
            cut = _draw(codes.shape[-1], generator) + 1
            caption, codes = self._other_caption(generator), torch.cat([codes[:, :cut], other[:, cut:]], 1)
        return Clip(clip.track, caption, codes)


@torch.no_grad()
def codebook_nll(backend: Backend, clips: Sequence[Clip], size: int) -> Tensor:
    """Mean NLL a token of each codebook over all clips, nats, [K]; `size` clips a pass."""
    total = torch.zeros(backend.codebooks, device=backend.device)
    count = torch.zeros_like(total)
    for start in range(0, len(clips), size):
        batch = Batch.of(clips[start : start + size], backend.device)
        total -= backend.token_logprobs(batch).sum((0, 2))
        count += backend.token_mask(batch).sum((0, 2))
    return total / count


@torch.no_grad()
def _without_dropout(backend: Backend, batch: Batch) -> Tensor:
    """The model's own logits [N, K, T, V] as it plays, in evaluation mode."""
    training = backend.module.training
    backend.module.eval()
    try:
        return backend.logits(batch)
    finally:
        backend.module.train(training)


def _draw(most: int, generator: torch.Generator) -> int:
    """A number from 0 to `most` - 1; 0 where `most` is less than 2."""
    return int(torch.randint(max(most, 1), (1,), generator=generator))
