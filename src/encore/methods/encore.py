"""Encore's method: each track is forgotten toward the model's own predictions for music that it was not trained on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from encore import distributed
from encore.api import Backend, Batch, Clip, LossMethod, Session, Step
from encore.api.data import LazyClips
from encore.curvature.fisher_stream import evaluating
from encore.losses import clip_mean, kl_divergence, token_logprobs
from encore.memorised import has_memorised, memorised_below
from encore.methods.difficulty import difficulty
from encore.methods.encore_teacher import (
    SimilarCaptions,
    entropy_and_slope,
    mean_predictions,
    random_below,
    random_choice,
    sharpened,
    shift_mean_toward,
)
from encore.methods.relearning_attack import RelearningAttack, with_weights
from encore.methods.weight_scale import median_layer_width, median_weight_rms
from encore.options import TrainOptions

MIN_GAP = 0.01  # least gap between a track's NLL and its target, as a share of the target
FULL_RATE_CLIPS = 8  # memorised forget clips from which on the rate is not reduced
BASE_WIDTH = 128  # inputs per layer up to which the rate is not reduced
ENTROPY_CLIPS = 32  # held-out clips; the mean entropy of the base's predictions for them is a teacher's limit
START_WEIGHT, START_FRAMES = 20.0, 2.0  # additional weight of a retain clip's first frame, and its decay in frames
REPLACED = 0.5  # share of memorised retain clips that give way to other retain where that is harmed more
VISITS = 30  # steps with each memorised clip, at least, before relearning is tried on them
REVERSED_DRAWS = 4  # captions and shifts with which the base predicts each time-reversed clip
FIRST_FRAMES = 12  # of a forget clip; later ones would weigh less than .3 % of the first


class Encore(LossMethod):
    """On forget: KL(teacher ‖ model) + γ mean_k max(0, ℓ_k - NLL_k), at a high learning rate, with dropout.

    The teacher is the current model (no gradient), with an input from which it can hardly retrieve the clip: the start
    is shifted by up to `shift_seconds`, and the caption is that of another track, one of those most similar to its own.
    The teacher forgets with the model, until both predict the clip as music that they were not trained on. A teacher
    whose entropy exceeds that of the base on held-out music with the same kind of input is sharpened (`sharpened`): a
    high rate makes all predictions less certain, and generations noise. Its mean prediction over the clip is moved
    toward that of the base for the time-reversed clip (`shift_mean_toward`), which shows how often music of this sound
    uses each code, but hardly what the base has memorised: by self-distillation alone, the model comes to avoid the
    codes of the track. The second term removes the memory that the teacher still has: the NLL of codebook k is raised
    to the target ℓ_k, and no further; a clip whose NLL exceeds its mean target has no loss. For a memorised clip, ℓ_k
    is the base's mean NLL of held-out music times the clip's difficulty, estimated from its codes (`difficulty`). A
    clip that is not memorised has no teacher; its target is its NLL under base, plus the rise of its NLL when its start
    is shifted, minus the same rise for held-out music. Where a step has fewer than four forget clips, they are drawn
    more often, and their loss is multiplied by a fourth of their number.

    A generation from a caption depends on the first frames. Those of a memorised clip have a similar loss of their own,
    which is never attacked: frame t weighs exp(-t / 2); the teacher has no shift and no mean to be moved to, and the
    caption of a retain track that is not memorised (where all are, of any); the target is one standard deviation below
    the base's mean NLL of held-out music's first frames. They may still be memorised when the clip as a whole is beyond
    its target; beyond their own they have no loss.

    While the rate is high, a share of the steps (`attack_share`; more where a step has fewer memorised clips, at the
    same cost) is attacked: a copy of the model is trained on the step's memorised clips for a few steps, the loss is
    computed at the weights reached, and its gradient applied to the model's weights (first-order tamper resistance,
    Tamirisa et al., arXiv 2408.00761). This erases memory that a little training would restore, instead of suppressing
    it. In attacked steps ℓ_k is multiplied by the share of its NLL that held-out music keeps under the same attack on
    the base. The rate of attacks is `attack_rate` times the median weight RMS, or `STRONG_ATTACK_LR` where that is
    higher and relearns more. The rate decays when the forget tracks are near their targets and, if any is memorised,
    relearning lowers the NLL of memorised ones no further than that of held-out music (`ready`) or a fifth of the steps
    has passed; after three tenths in any case.

    On retain: memorised clips keep their likelihood. Frame t has the weight 1 + 20 c_t exp(-t / 2), with c_t the
    confidence of the base at frame t (1: NLL 0; 0: NLL of held-out music or more). Crops of all clips keep the base's
    distribution; a share of them (`mix`) continues with another retain clip from a random frame on, under the caption
    of a third, so that the model's confidence on other music stays that of the base. In a share of the steps
    (`unconditional`) all retain clips keep the base's distribution without captions, which guided sampling subtracts.
    While retain that is not memorised is harmed beyond its tolerance, and memorised retain is not, half of the
    memorised clips are replaced by any of retain, whole, which keep the base's distribution.

    Settings follow from the model and the list. The peak rate is `rate` times the median weight RMS of the linear
    layers, times the square root of the largest relative gap between a clip's NLL and its target, and with fewer than
    `FULL_RATE_CLIPS` memorised clips times the square root of their number over `FULL_RATE_CLIPS`. Low rates suppress a
    memory, which a few steps of training restore; high rates harm all music; one track, in every step, is erased by .35
    of the rate for eight. Where layers are wider than `BASE_WIDTH` (median number of inputs), the rate is multiplied by
    the square root of `BASE_WIDTH` over their width: a step of Adam changes all of a layer's weights at once, which
    moves its outputs by the square root of its inputs more, relative to their size (Yang et al., arXiv 2203.03466:
    rates fall as 1 / width). The schedule is `adaptive` (`encore.unlearn.lr_schedule`), which halves a peak at which
    the model loses memorised retain. Figures: `benchmarks/RESULTS.md`.
    """

    class Options(TrainOptions):
        """Rates are relative to the model's weights, and the length follows from the run."""

        steps: int = 300
        lr: float | None = Field(
            None, gt=0, le=1e6, description="peak learning rate of AdamW; default: from model and list"
        )
        rate: float = Field(
            0.085,
            gt=0,
            le=1e3,
            description="peak learning rate relative to the median RMS of the linear layers' weights",
        )
        batch_size: int = 10
        forget_batch_size: int = 4
        schedule: Literal["linear", "cosine", "constant", "adaptive"] = "adaptive"
        dropout: bool = True
        stop: Literal["target", "never"] = "never"
        eval_every: int = 15
        decay_steps: int = 75
        attack_share: float = Field(
            0.5,
            ge=0,
            le=1,
            description="share of steps under attack if the forget batch is full of memorised clips; more if not",
        )
        attack_steps: int = Field(8, ge=1, le=1000, description="steps of relearning in an attack, at most")
        attack_rate: float = Field(
            0.03,
            gt=0,
            le=1e3,
            description="learning rate of attacks, relative to the median RMS of the linear layers' weights",
        )
        shift_seconds: float = Field(0.8, gt=0, le=600, description="largest shift of the start of the teacher's clip")
        gamma: float = Field(0.3, ge=0, le=1e6, description="weight of the gap between a clip's NLL and its target")
        alpha: float = Field(2.0, ge=0, le=1e6, description="weight of the retain loss")
        memorised_share: float = Field(
            0.55, ge=0.01, le=0.95, description="share of retain clips drawn that are memorised"
        )
        crop: float = Field(0.5, ge=0, lt=1, description="largest share cut from the start of a clip")
        mix: float = Field(0.5, ge=0, le=1, description="share of retain crops that are mixed with another clip")
        unconditional: float = Field(0.2, ge=0, le=1, description="share of steps that keep retain without captions")

    options: Options

    @property
    def trained_copies(self) -> int:
        return int(self.options.attack_share > 0)

    def prepare(self, session: Session) -> None:
        backend, retain = session.backend, session.retain_sample()
        self._limit = limit = memorised_below(session.holdout_nll, backend.codebook_size)
        self._share = min(1.0, len(session.forget) / self.options.forget_batch_size)
        nll = codebook_nll(backend, retain, self.options.micro_batch_size).mean(1).tolist()
        memorised = [
            clip for clip, clip_nll in zip(retain, nll, strict=True) if has_memorised(clip.codes, clip_nll, limit)
        ]
        self._memorised_retain = set(memorised)
        self._retain, others = session.retain, [clip for clip in retain if clip not in self._memorised_retain]
        self._captions, self._start_captions = SimilarCaptions(retain), [clip.caption for clip in others or retain]
        self._weights: dict[Clip, Tensor] = {}
        holdout = list(session.holdout) or others  # retain that is not memorised is the most similar to held-out music
        self._set_targets(session, holdout, limit)
        self._entropy = self._teacher_entropy(session, holdout) if self._memorised_forget else math.inf
        self._means = self._reversed_means(session)
        self._set_rate(session)
        self._attack = RelearningAttack(
            lr=self.options.attack_rate * self._weight_rms, steps=self.options.attack_steps,
            size=self.options.micro_batch_size, measure=codebook_nll,
        )  # fmt: skip
        if self._memorised_forget and self.options.attack_share:
            most = self.options.forget_batch_size
            together = min(len(self._memorised_forget), most)
            self._attack.calibrate(session, holdout, clips_per_attack=together, max_clips=most)
        if memorised:
            share = self.options.memorised_share
            wanted = share / (1 - share) * len(self._retain) / len(memorised)  # times as often as any other
            session.retain = _WeightedRetain(self._retain, max(1, round(1 / wanted)), memorised, max(1, round(wanted)))

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        shift, (captions, start_captions), attack = step.once("forget", lambda: self._sample_step(step, batch))
        weights, retained_share = attack
        mask = step.backend.token_mask(batch)
        with with_weights(step.backend.module, weights):
            logits = step.backend.logits(batch)
            nll = -token_logprobs(logits, batch.codes, mask).sum(2) / mask.sum(2).clamp(min=1)  # [N, K]
            targets = torch.stack([self._target_nll[clip] for clip in batch.clips]) * retained_share
            loss = self.options.gamma * (targets - nll).relu().mean(1)
            has_teacher = torch.tensor(
                [clip in self._memorised_forget for clip in batch.clips], device=batch.codes.device
            )
            teaches = not self._memorised_forget.isdisjoint(step.forget if distributed.in_lockstep() else batch.clips)
            if teaches:
                teacher, teacher_mask = self._teacher(step.backend, batch, captions, slice(shift, None), self._means)
                divergence = kl_divergence(teacher, logits[:, :, shift:], teacher_mask)
                loss = loss + clip_mean(divergence, teacher_mask) * has_teacher
        loss = loss * (nll.mean(1) < targets.mean(1))  # a clip beyond its target has no loss
        if teaches:
            loss = loss + self._start_loss(step.backend, batch, start_captions) * has_teacher
        return loss * self._share  # fewer clips are drawn more often, and have no more weight in all

    def _teacher(
        self,
        backend: Backend,
        batch: Batch,
        captions: Mapping[Clip, str],
        frames: slice,
        means: Mapping[Clip, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The model's predictions for some frames of clips, from these frames only.

        Args:
            backend: with the model.
            batch: the clips.
            captions: that each clip has in place of its own.
            frames: those to predict.
            means: mean predictions [K, V] that those of some clips are moved toward.

        Returns:
            Logits [N, K, T, V] and a mask [N, K, T] of these frames.
        """
        clips = [Clip(clip.track, captions[clip], clip.codes[:, frames]) for clip in batch.clips]
        teacher_batch = Batch.of(clips, batch.codes.device)
        mask, logits = backend.token_mask(teacher_batch), _without_dropout(backend, teacher_batch)
        if means:
            logits = shift_mean_toward(logits, mask, [means.get(clip) for clip in batch.clips])
        return sharpened(logits, mask, self._entropy), mask

    def _start_loss(self, backend: Backend, batch: Batch, captions: Mapping[Clip, str]) -> Tensor:
        """The loss on the first frames of clips, [N]."""
        first = first_frames(batch.clips, batch.codes.device)
        mask = backend.token_mask(first)
        logits = backend.logits(first)
        gap = (self._start_target - start_mean(-token_logprobs(logits, first.codes, mask), mask)).relu()
        teacher, _ = self._teacher(backend, batch, captions, slice(FIRST_FRAMES))
        return start_mean(kl_divergence(teacher, logits, mask), mask) * (gap > 0) + self.options.gamma * gap

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        losses: list[Tensor] = []
        share = self.options.unconditional
        unconditional = step.once("unconditional", lambda: share > 0 and _chance(share, step.generator))
        cropped = step.once("crops", lambda: self._crops(step, step.retain or batch.clips))
        by_likelihood = set() if unconditional else {clip for clip, crop in cropped.items() if crop is clip}
        memorised = [i for i, clip in enumerate(batch.clips) if clip in by_likelihood]
        others = [i for i, clip in enumerate(batch.clips) if clip not in by_likelihood]
        kept, crops = [batch.clips[i] for i in memorised], [cropped[batch.clips[i]] for i in others]
        if distributed.in_lockstep():  # a clip of each kind that any process has, of which the loss is left out
            kept = kept or [clip for clip in step.retain if clip in by_likelihood][:1]
            crops = crops or [cropped[clip] for clip in step.retain if clip not in by_likelihood][:1]
        if kept:
            losses.append(self._likelihood(step, Batch.of(kept, batch.codes.device))[: len(memorised)])
        if crops:
            assert step.reference is not None  # declared in the spec
            cut = Batch.of(crops, batch.codes.device)
            mask = step.backend.token_mask(cut)
            reference = step.reference.logits(cut, unconditional=unconditional)
            kl = kl_divergence(reference, step.backend.logits(cut, unconditional=unconditional), mask)
            losses.append(clip_mean(kl, mask)[: len(others)])
        order = torch.tensor(memorised + others, device=batch.codes.device).argsort()
        return self.options.alpha * torch.cat(losses)[order]

    def ready(self, step: Step) -> bool:
        """Whether no clip is memorised, or relearning lowers the NLL of some no further than that of held-out music.

        That is tried after `VISITS` visits of each clip. Before, losses at the high rate may be beyond their targets
        while the memory is not erased, and returns as the rate decays.
        """
        memorised = {clip: target for clip, target in self._target_nll.items() if clip in self._memorised_forget}
        if not memorised or not self.options.attack_share:
            return True
        visits = (step.index + 1) * min(1.0, self.options.forget_batch_size / len(self._target_nll))
        return visits >= VISITS and self._attack.resisted(step, memorised, self.options.forget_batch_size)

    # ------------------------------------------------------------------------------------------ targets and the rate

    def _set_targets(self, session: Session, holdout: Sequence[Clip], limit: float) -> None:
        """Set the target NLL [K] of each forget clip, and their mean for each track."""
        backend, forget = session.backend, list(session.forget)
        nll = codebook_nll(backend, forget)
        self._memorised_forget = {
            clip
            for clip, clip_nll in zip(forget, nll.mean(1).tolist(), strict=True)
            if has_memorised(clip.codes, clip_nll, limit)
        }
        rest = [clip for clip in forget if clip not in self._memorised_forget]
        holdout_nll, difficulties = nll.new_full((backend.codebooks,), 2 * limit), nll.new_ones(len(forget))
        self._start_target = 0.0
        if holdout:
            starts = start_nll(backend, holdout)
            self._start_target = float(starts.mean() - starts.std(correction=0))
            each = codebook_nll(backend, holdout)
            holdout_nll, difficulties = each.mean(0), difficulty(forget, holdout, each.mean(1)).to(nll)
        rise = float(self._shift_rise(backend, holdout).mean()) if holdout and rest else 0.0
        more = dict(zip(rest, (self._shift_rise(backend, rest) - rise).relu(), strict=True)) if rest else {}
        self._target_nll = {
            clip: holdout_nll * share if clip in self._memorised_forget else clip_nll + more[clip]
            for clip, clip_nll, share in zip(forget, nll, difficulties, strict=True)
        }
        of_track: dict[str, list[tuple[float, int]]] = {}  # target and length of each clip
        gaps = []
        for clip, clip_nll in zip(forget, nll, strict=True):
            target = float(self._target_nll[clip].mean())
            of_track.setdefault(clip.track, []).append((target, clip.codes.shape[-1]))
            gaps.append(max(MIN_GAP, 1 - float(clip_nll.mean()) / target))
        session.target_nll = {track: statistics.fmean(*zip(*clips, strict=True)) for track, clips in of_track.items()}
        self._largest_gap = max(gaps)

    @torch.no_grad()
    def _shift_rise(self, backend: Backend, clips: Sequence[Clip]) -> Tensor:
        """Rise of the NLL of each clip after its first part when that part is cut off, nats per token, [N]."""
        begins = [min(self._shift(backend), clip.codes.shape[-1] // 2) for clip in clips]
        size, rises = self.options.micro_batch_size, dict[Clip, Tensor]()
        for begin in set(begins):  # nearly all clips are long enough for the same
            same = [clip for clip, its_begin in zip(clips, begins, strict=True) if its_begin == begin]
            for start in range(0, len(same), size):
                some = same[start : start + size]
                later = Batch.of([Clip(c.track, c.caption, c.codes[:, begin:]) for c in some], backend.device)
                mask = backend.token_mask(later)
                whole = backend.token_logprobs(Batch.of(some, backend.device))[:, :, begin:]
                more = ((whole - backend.token_logprobs(later)) * mask).sum((1, 2))
                rises |= zip(some, more / mask.sum((1, 2)), strict=True)
        return torch.stack([rises[clip] for clip in clips])

    @torch.no_grad()
    def _teacher_entropy(self, session: Session, clips: Sequence[Clip]) -> float:
        """Mean entropy of the base's predictions for clips with shifted starts and other captions, nats per token."""
        backend, generator = session.backend, torch.Generator().manual_seed(session.seed)
        clips = [clip for clip in clips if clip.codes.shape[-1] > 1]
        if not clips:
            return math.inf
        spread = [clips[i * len(clips) // ENTROPY_CLIPS] for i in range(ENTROPY_CLIPS)]
        changed = [self._teacher_clip(backend, clip, generator) for clip in spread]

        def compute(part: Sequence[Clip]) -> Tensor:
            batch = Batch.of(part, backend.device)
            return entropy_and_slope(backend.logits(batch), backend.token_mask(batch))[0]

        size = self.options.micro_batch_size
        return float(distributed.rows(changed, size, compute, size=lambda clip: clip.codes.shape[-1]).mean())

    @torch.no_grad()
    def _reversed_means(self, session: Session) -> dict[Clip, Tensor]:
        """Mean predictions [K, V] of the base for each memorised clip, time-reversed and under other captions."""
        backend, generator = session.backend, torch.Generator().manual_seed(session.seed)
        clips = [clip for clip in session.forget if clip in self._memorised_forget and clip.codes.shape[-1] > 1]
        if not clips:
            return {}

        def compute(part: Sequence[Clip]) -> Tensor:
            batch = Batch.of(part, backend.device)
            return mean_predictions(backend.logits(batch), backend.token_mask(batch))

        means = torch.zeros(())
        for _ in range(REVERSED_DRAWS):
            changed = [self._teacher_clip(backend, clip, generator) for clip in clips]
            backwards = [Clip(clip.track, clip.caption, clip.codes.flip(-1)) for clip in changed]
            size = self.options.micro_batch_size
            each = distributed.rows(backwards, size, compute, size=lambda clip: clip.codes.shape[-1])
            means = means.to(each) + each / REVERSED_DRAWS
        return dict(zip(clips, means, strict=True))

    def _teacher_clip(self, backend: Backend, clip: Clip, generator: torch.Generator) -> Clip:
        """A clip as its teacher gets it: with a shifted start and another caption."""
        begin = self._drawn_shift(backend, clip.codes.shape[-1], generator)
        caption = self._captions.draw(clip.caption, generator)
        return Clip(clip.track, caption, clip.codes[:, begin:])

    def _set_rate(self, session: Session) -> None:
        self._weight_rms = median_weight_rms(session.backend.module)
        count_factor = min(1.0, len(self._memorised_forget) / FULL_RATE_CLIPS) ** 0.5 if self._memorised_forget else 1.0
        width = median_layer_width(session.backend.module)
        width_factor = min(1.0, BASE_WIDTH / width) ** 0.5
        session.lr = self.options.rate * self._weight_rms * math.sqrt(self._largest_gap) * count_factor * width_factor
        if self.options.lr is None:
            session.chosen["lr"] = (
                f"{session.lr:.2g}: {self.options.rate:g} of the median weight RMS {self._weight_rms:.2g}, "
                f"times {math.sqrt(self._largest_gap):.2f} for the NLL farthest below its target, times "
                f"{count_factor:.2f} for {len(self._memorised_forget)} memorised clips, times {width_factor:.2f} for "
                f"layers of {width:g} inputs"
            )

    # ------------------------------------------------------------------------------------------------------- details

    def _sample_step(
        self, step: Step, batch: Batch
    ) -> tuple[int, tuple[dict[Clip, str], dict[Clip, str]], tuple[dict[str, Tensor], Tensor | float]]:
        """What all batches of a step share: the teacher's shift, its captions, those for first frames, the attack."""
        clips = step.forget or batch.clips
        shortest = min(clip.codes.shape[-1] for clip in clips)
        shift = self._drawn_shift(step.backend, shortest, step.generator)
        captions = {clip: self._captions.draw(clip.caption, step.generator) for clip in clips}
        start_captions = {clip: self._start_caption(clip, step.generator) for clip in clips}
        memorised = [clip for clip in step.forget if clip in self._memorised_forget]
        share = self.options.attack_share * self.options.forget_batch_size / max(len(memorised), 1)
        attack = self._attack.maybe_attack(step, memorised, share=share, size=len(batch))
        return shift, (captions, start_captions), attack

    def _start_caption(self, clip: Clip, generator: torch.Generator) -> str:
        """The caption of the teacher of a clip's first frames: of retain that is not memorised, where there is any."""
        others = [caption for caption in self._start_captions if caption != clip.caption]
        return random_choice(others or self._start_captions, generator)

    def _crops(self, step: Step, clips: Sequence[Clip]) -> dict[Clip, Clip]:
        """For each clip the one that is trained on: a crop of it, or where it is memorised, the clip itself.

        Where other retain is harmed more than is allowed, and more than memorised retain, most of the memorised clips
        are replaced by any of retain, whole, which keep the base's distribution.
        """
        harm, generator = step.harm, step.generator
        allowed = max(1.0, harm.get("memorised", 0.0), harm.get("worst", 0.0))
        replaced = REPLACED if harm.get("not_memorised", 0.0) > allowed else 0.0
        crops = dict[Clip, Clip]()
        for clip in clips:
            if clip not in self._memorised_retain:
                crops[clip] = self._crop(clip, generator)
            elif replaced and _chance(replaced, generator):
                other = random_choice(self._retain, generator)
                crops[clip] = Clip(other.track, other.caption, other.codes)
            else:
                crops[clip] = clip
        return crops

    def _likelihood(self, step: Step, batch: Batch) -> Tensor:
        """NLL of memorised clips [N], with more weight on the frames that a generation from the caption depends on."""
        mask = step.backend.token_mask(batch)
        nll = -step.backend.token_logprobs(batch)
        self._weigh(step, [clip for clip in batch.clips if clip not in self._weights])
        weights = torch.zeros_like(nll)
        for row, clip in zip(weights, batch.clips, strict=True):
            row[:, : clip.codes.shape[-1]] = self._weights[clip]
        weights = weights * mask
        return (nll * weights).sum((1, 2)) / weights.sum((1, 2))

    def _weigh(self, step: Step, clips: Sequence[Clip]) -> None:
        """Compute the frame weights [T] of clips."""
        if not clips:
            return
        assert step.reference is not None  # declared in the spec
        batch = Batch.of(clips, step.backend.device)
        mask = step.backend.token_mask(batch)
        with torch.no_grad():
            nll = -token_logprobs(step.reference.logits(batch), batch.codes, mask)
        confidence = (1 - nll.sum(1) / mask.sum(1).clamp(min=1) / (2 * self._limit)).clamp(0, 1)  # [N, T]
        for clip, row in zip(clips, 1 + confidence * start_weights(confidence), strict=True):
            self._weights[clip] = row[: clip.codes.shape[-1]]

    def _shift(self, backend: Backend) -> int:
        """The longest shift, in frames."""
        return max(1, int(self.options.shift_seconds * backend.frame_rate))

    def _drawn_shift(self, backend: Backend, frames: int, generator: torch.Generator) -> int:
        """How much later a teacher's clip begins, in frames: at most half of the clip."""
        return random_below(min(self._shift(backend), frames // 2), generator) + 1

    def _crop(self, clip: Clip, generator: torch.Generator) -> Clip:
        start = random_below(int(self.options.crop * clip.codes.shape[-1]), generator)
        caption, codes = clip.caption, clip.codes[:, start:]
        if _chance(self.options.mix, generator):
            other = random_choice(self._retain, generator).codes[:, start:]
            if other.shape[-1]:
                cut = random_below(min(codes.shape[-1], other.shape[-1]), generator) + 1
                caption = random_choice(self._retain, generator).caption
                codes = torch.cat([codes[:, :cut], other[:, cut:]], 1)
        return Clip(clip.track, caption, codes)


def start_weights(values: Tensor) -> Tensor:
    """Additional weights [T] of the frames of values [..., T]: a generation from a caption depends on the first."""
    frames = torch.arange(values.shape[-1], device=values.device, dtype=values.dtype)
    return START_WEIGHT * torch.exp(-frames / START_FRAMES)


def first_frames(clips: Sequence[Clip], device: torch.device) -> Batch:
    """The first frames of clips, which a generation from the caption depends on."""
    return Batch.of([Clip(clip.track, clip.caption, clip.codes[:, :FIRST_FRAMES]) for clip in clips], device)


def start_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each clip's values, weighted by `start_weights`: [N, K, T] -> [N]."""
    return clip_mean(values, start_weights(values) * mask)


class _WeightedRetain(LazyClips):
    """The clips that the loop draws from: each retain clip, to be cropped, and the memorised ones again.

    Args:
        retain: all retain clips, each read when it is drawn.
        crops: how often each of them is listed.
        memorised: the memorised ones.
        times: how often each of these is listed.
    """

    def __init__(self, retain: Sequence[Clip], crops: int, memorised: Sequence[Clip], times: int) -> None:
        self._retain, self._crops = retain, len(retain) * crops
        self._memorised_retain, self._length = memorised, len(retain) * crops + len(memorised) * times

    def __len__(self) -> int:
        return self._length

    def clip(self, place: int) -> Clip:
        """One of the memorised clips, or a copy of a retain clip, equal to no other clip."""
        if place >= self._crops:
            return self._memorised_retain[(place - self._crops) % len(self._memorised_retain)]
        clip = self._retain[place % len(self._retain)]
        return Clip(clip.track, clip.caption, clip.codes)


@torch.no_grad()
def codebook_nll(backend: Backend, clips: Sequence[Clip], size: int = 16) -> Tensor:
    """Mean NLL per token of each clip's codebooks, nats, [N, K]; `size` clips per pass."""

    def compute(part: Sequence[Clip]) -> Tensor:
        batch = Batch.of(part, backend.device)
        return -backend.token_logprobs(batch).sum(2) / backend.token_mask(batch).sum(2).clamp(min=1)

    return distributed.rows(clips, size, compute, size=lambda clip: clip.codes.shape[-1])


@torch.no_grad()
def start_nll(backend: Backend, clips: Sequence[Clip], size: int = 16) -> Tensor:
    """Mean NLL of the first frames of each clip, nats per token, [N]; `size` clips per pass."""

    def compute(part: Sequence[Clip]) -> Tensor:
        first = first_frames(part, backend.device)
        return start_mean(-backend.token_logprobs(first), backend.token_mask(first))

    return distributed.rows(clips, size, compute)


@torch.no_grad()
def _without_dropout(backend: Backend, batch: Batch) -> Tensor:
    """The model's logits [N, K, T, V], in evaluation mode."""
    with evaluating(backend.module):
        return backend.logits(batch)


def _chance(share: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < share)
