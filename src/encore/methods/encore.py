"""Encore's own method: each track is forgotten toward what the model says of music that it never heard."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from encore.api import Batch, Clip, LossMethod, Session, Step
from encore.losses import clip_mean, kl_divergence
from encore.options import TrainOptions

KNOWN = 0.5  # a retain clip at less than this share of the unseen level is known by heart


class Encore(LossMethod):
    """KL(teacher ‖ model) on forget, retain held by likelihood or by the base's distribution, at a high learning rate.

    The teacher is the model itself (no gradient) where it can't well recognise the track: the clip begins up to
    `shift_seconds` later than it was learnt, and its caption is that of another track. What memory is left there is
    taken out by lowering the true code's logit, a clip at a time, until the clip's NLL is the unseen level plus
    `margin`. As the model forgets, so does the teacher, until both say what they would of unheard music.

    Retain clips known by heart keep their likelihood. The others, and only crops of them, keep the base's distribution:
    that is the model's general sense of music, which a high rate would spoil. The rate is high because low ones only
    cover a memory: it then comes back after a few steps of training (see `bench/RESULTS.md`).
    """

    class Options(TrainOptions):
        """Found on the tuning split, without gold; figures in `bench/RESULTS.md`."""

        steps: int = 100
        lr: float = 5e-3
        batch_size: int = 10
        forget_batch_size: int = 4
        schedule: Literal["linear", "cosine", "constant"] = "cosine"
        eval_every: int = 50
        stop: Literal["target", "never"] = "never"
        shift_seconds: float = Field(0.8, gt=0, description="most that the teacher's clip begins later")
        temperature: float = Field(1.0, gt=0, description="of the teacher; below 1 it is surer of itself")
        margin: float = Field(4.0, ge=0, description="nats/token above the unseen level in the teacher")
        known_share: float = Field(0.55, gt=0, lt=1, description="share of retain clips drawn that are known by heart")
        alpha: float = Field(2.0, ge=0, description="weight of the retain loss")
        crop: float = Field(0.5, ge=0, lt=1, description="most of an unmemorised retain clip that is cut off its start")

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
        self._captions = [clip.caption for clip in clips]
        heard = [clip for clip in clips if clip not in self._known]
        if self._known and heard:
            share = self.options.known_share
            repeats = round(share / (1 - share) * len(heard) / len(self._known))
            session.retain = heard + [clip for clip in clips if clip in self._known] * max(1, repeats)

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        shortest = int(batch.frames.min())
        most = min(int(self.options.shift_seconds * step.backend.frame_rate), shortest // 2)
        shift = _draw(most, step.generator) + 1
        strange = Batch.of(
            [Clip(clip.track, self._other_caption(step), clip.codes[:, shift:]) for clip in batch.clips],
            batch.codes.device,
        )
        mask = step.backend.token_mask(strange)
        with torch.no_grad():
            teacher = (step.backend.logits(strange).float() / self.options.temperature).log_softmax(-1)
            if step.level is not None:
                teacher = lower_true(teacher, strange.codes, mask, step.level + self.options.margin)
        logits = step.backend.logits(batch)[:, :, shift:]
        return clip_mean(kl_divergence(teacher, logits, mask), mask)

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

    def _other_caption(self, step: Step) -> str:
        return self._captions[_draw(len(self._captions), step.generator)]

    def _crop(self, clip: Clip, generator: torch.Generator) -> Clip:
        start = _draw(int(self.options.crop * clip.codes.shape[-1]), generator)
        return Clip(clip.track, clip.caption, clip.codes[:, start:])


def lower_true(logprobs: Tensor, codes: Tensor, mask: Tensor, level: float) -> Tensor:
    """Lower the true code's logit by one amount a clip, until the clip's mean NLL is at least `level`.

    With p the true code's probability, lowering its logit by d gives NLL = d - log p + log(1 - p (1 - e^-d)), which
    grows with d; d is found by bisection. A clip that is there already stays as it is.

    Args:
        logprobs: normalised, [N, K, T, V]. codes: [N, K, T]. mask: bool [N, K, T]. level: nats/token.

    Returns:
        Normalised log-probabilities [N, K, T, V].
    """
    true = logprobs.gather(-1, codes[..., None])[..., 0]  # [N, K, T]
    low = torch.zeros(len(logprobs), 1, 1, device=logprobs.device)
    high = torch.full_like(low, 4 * level)
    for _ in range(20):
        middle = (low + high) / 2
        nll = middle - true + torch.log1p(true.exp() * torch.expm1(-middle))
        short = (clip_mean(nll, mask) < level)[:, None, None]
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    reached = (clip_mean(-true, mask) >= level)[:, None, None]
    drop = torch.where(reached, torch.zeros_like(high), high).expand_as(true)
    return F.log_softmax(logprobs.scatter_add(-1, codes[..., None], -drop[..., None]), -1)


def _draw(most: int, generator: torch.Generator) -> int:
    """A number from 0 to `most` - 1; 0 where `most` is less than 2."""
    return int(torch.randint(max(most, 1), (1,), generator=generator))
