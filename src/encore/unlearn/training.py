"""The recipe of `encore train`: fine-tuning on tracks until they are memorised, or for a number of epochs."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from encore import distributed
from encore.api import Backend, Batch, Clip, LossMethod, MethodSpec, Session, Step
from encore.evaluate.evaluation import SharedEvaluation
from encore.losses import token_logprobs
from encore.memorised import memorised_below
from encore.methods.encore import START_FRAMES, START_WEIGHT
from encore.methods.weight_scale import median_weight_rms
from encore.metrics.memorization.verbatim import MATCH, PROMPT_SECONDS, right_shares
from encore.options import TrainOptions
from encore.unlearn.monitor import lowest_loss_clips

NAME = "train"
MEASURED = 64  # tracks whose memorisation is measured, at most
MEMORISED = 0.95  # share of them that must be memorised
RESOLVED = ("steps", "schedule", "warmup")  # options that `resolved` may change
RATE, SCRATCH_RATE = 0.02, 0.1  # learning rate relative to the median weight RMS; the second of an untrained model
WARM = 0.1  # share of the steps that the warm-up takes, at most


@dataclass(frozen=True)
class _Example:
    """A clip as it is trained on: whether it is whole, and whether without its caption."""

    clip: Clip
    whole: bool
    unconditional: bool


class Training(LossMethod):
    """min NLL of the tracks' clips, with frame t of weight 1 + 20 exp(-t / 2).

    The first frames count more because a generation has only the caption to begin from. As in the training of a
    text-to-music model, some clips begin later (`crop_share`; all frames of weight 1), and some are trained without
    their caption (`caption_dropout`), for classifier-free guidance. A model without tokens is trained on its own loss.

    By default the rate is constant until the tracks are memorised (`memorised`), then decays over `decay_steps`. With
    `epochs`, it is a cosine over that many passes over the clips.
    """

    spec = MethodSpec(
        NAME, "fine-tune on tracks until they are memorised", "encore.unlearn.training:Training",
        needs=frozenset({"retain"}),
    )  # fmt: skip

    class Options(TrainOptions):
        """Defaults fit any model: the rate is relative to its weights, and the length follows from the run."""

        epochs: int | None = Field(None, ge=1, description="passes over the tracks; default: until they are memorised")
        from_scratch: bool = Field(False, description="draw new trainable weights first, as before any training")
        steps: int = 10_000
        lr: float | None = Field(None, gt=0, le=1e6, description="peak learning rate of AdamW; default: from the model")
        rate: float | None = Field(
            None, gt=0, description="peak learning rate relative to the median RMS of the linear layers' "
            "weights; default: .02, from scratch .1",
        )  # fmt: skip
        batch_size: int = Field(8, ge=1, description="clips per step")
        warmup: int = 50
        schedule: Literal["linear", "cosine", "constant", "adaptive"] = "adaptive"
        decay_steps: int = 100
        weight_decay: float = 0.01
        dropout: bool = True
        eval_every: int = 25
        stop: Literal["target", "never"] = "never"
        select: Literal["best", "last"] = "last"
        crop_share: float = Field(0.1, ge=0, le=1, description="share of clips that begin later")
        crop: float = Field(0.5, ge=0, lt=1, description="largest share cut from the start of a clip")
        caption_dropout: float = Field(0.1, ge=0, le=1, description="share of clips trained without their caption")

    options: Options

    @property
    def default_rates(self) -> dict[str, float]:
        """The learning rates where the options have none, by option."""
        return {"rate": SCRATCH_RATE if self.options.from_scratch else RATE}

    def prepare(self, session: Session) -> None:
        weight_rms = median_weight_rms(session.backend.module)
        rate = self.options.rate or self.default_rates["rate"]
        session.lr = rate * weight_rms
        if self.options.lr is None:
            session.chosen["lr"] = f"{session.lr:.2g}: {rate:g} of the median weight RMS, which is {weight_rms:.2g}"
        self._measured = measured_clips(session.retain, session.seed)

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        if not step.backend.has_tokens:
            return step.backend.losses(batch)
        drawn = step.once("examples", lambda: self._examples(step.retain or batch.clips, step.generator))
        losses, order = list[Tensor](), list[int]()
        for unconditional in (False, True):
            rows = [i for i, clip in enumerate(batch.clips) if drawn[clip].unconditional == unconditional]
            examples = [drawn[batch.clips[i]] for i in rows]
            if distributed.in_lockstep():  # an example of each kind that any process has; its loss is left out
                examples = examples or [one for one in drawn.values() if one.unconditional == unconditional][:1]
            if examples:
                part = Batch.of([one.clip for one in examples], batch.codes.device)
                whole = torch.tensor([one.whole for one in examples], device=part.codes.device)
                losses.append(_weighted_nll(step.backend, part, whole, unconditional=unconditional)[: len(rows)])
                order += rows
        return torch.cat(losses)[torch.tensor(order, device=batch.codes.device).argsort()]

    def _examples(self, clips: Sequence[Clip], generator: torch.Generator) -> dict[Clip, _Example]:
        """How each clip is trained on in one step."""
        examples = {}
        drawn = torch.rand(len(clips), 3, generator=generator).tolist()  # crop?, its start, without the caption?
        for clip, (crop, place, dropped) in zip(clips, drawn, strict=True):
            start = int(self.options.crop * place * clip.codes.shape[-1]) if crop < self.options.crop_share else 0
            cut = Clip(clip.track, clip.caption, clip.codes[:, start:])
            examples[clip] = _Example(cut, start == 0, dropped < self.options.caption_dropout)
        return examples

    def ready(self, step: Step) -> bool:
        """Whether the tracks are memorised, so that the rate may decay."""
        return self.options.epochs is None and memorised(step.backend, self._measured).enough


def _weighted_nll(backend: Backend, batch: Batch, whole: Tensor, *, unconditional: bool) -> Tensor:
    """NLL of each clip, nats per token, [N]; the first frames of `whole` clips (bool [N]) count more."""
    mask = backend.token_mask(batch)
    nll = -token_logprobs(backend.logits(batch, unconditional=unconditional), batch.codes, mask)  # [N, K, T]
    frames = torch.arange(nll.shape[-1], device=nll.device, dtype=nll.dtype)
    start = START_WEIGHT * torch.exp(-frames / START_FRAMES)
    weights = (1 + whole[:, None] * start)[:, None] * mask
    return (nll * weights).sum((1, 2)) / weights.sum((1, 2))


def resolved(method: Training, clips: int) -> Training:
    """The recipe for a number of clips: steps and schedule of `epochs`, and a warm-up that fits the steps."""
    options = method.options
    if options.epochs is not None:
        steps = options.epochs * math.ceil(clips / options.batch_size)
        options = options.model_copy(update={"steps": steps, "schedule": "cosine"})
    warmup = min(options.warmup, int(WARM * options.steps))
    return Training(options.model_copy(update={"warmup": warmup}))


# ------------------------------------------------------------------------------------------------------ memorisation


@dataclass(frozen=True)
class Memorisation:
    """What a model has memorised of some tracks.

    Args:
        nll: track id -> NLL of its clip of the lowest NLL, in the backend's `unit`.
        limit: NLL below which a track counts as memorised (`encore.memorised`).
        right: track id -> share of right first-codebook tokens in the greedy continuation from the caption and 1 s;
            empty where it was not generated: the NLLs are above the limit, the tracks are not longer than 1 s, or the
            model has no tokens.
    """

    nll: dict[str, float]
    limit: float
    right: dict[str, float]

    @property
    def tracks(self) -> list[str]:
        """The memorised tracks: their NLL is below the limit, and what could be generated is verbatim."""
        return [track for track, nll in self.nll.items() if nll < self.limit and self.right.get(track, 1.0) >= MATCH]

    @property
    def verbatim(self) -> float | None:
        """Share of the generated tracks that are verbatim; None where nothing was generated."""
        return sum(share >= MATCH for share in self.right.values()) / len(self.right) if self.right else None

    @property
    def enough(self) -> bool:
        """Whether enough tracks are memorised."""
        return len(self.tracks) >= MEMORISED * len(self.nll)


def memorised(backend: Backend, clips: Sequence[Clip], *, generate_all: bool = False) -> Memorisation:
    """Measure what a model has memorised.

    Args:
        backend: the model; left in evaluation mode.
        clips: all clips of the tracks, at least one.
        generate_all: generate also where the NLLs show that too few tracks are memorised.
    """
    best = lowest_loss_clips(backend, clips)
    limit = memorised_below(None, backend.codebook_size) if backend.has_tokens else -math.inf
    by_nll = Memorisation({clip.track: nll for clip, nll in best}, limit, {})
    if not backend.has_tokens or not (generate_all or by_nll.enough):
        return by_nll
    evaluation = SharedEvaluation({"unlearned": backend}, {"forget": [clip for clip, _ in best]})
    return replace(by_nll, right=right_shares(evaluation, "unlearned", "forget", PROMPT_SECONDS))


def measured_clips(clips: Sequence[Clip], seed: int) -> list[Clip]:
    """All clips of up to `MEASURED` tracks, chosen by the seed."""
    tracks = list(dict.fromkeys(clip.track for clip in clips))
    chosen = set(random.Random(seed).sample(tracks, min(MEASURED, len(tracks))))
    return [clip for clip in clips if clip.track in chosen]
