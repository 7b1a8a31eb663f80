"""Alternate preference optimisation, AltPO (Mekala et al., arXiv 2409.13474), a form of DPO (arXiv 2305.18290)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from encore import distributed
from encore.api import Backend, Batch, Clip, LossMethod, Session, Step
from encore.options import TrainOptions

COPY = 0.5  # share of equal codes from which a generation is a copy of the track
TRIES, HOTTER = 5, 0.5  # a copy is generated again, at a temperature higher by this


class AltPo(LossMethod):
    """min -(2/β) E log σ(β [(NLL(x) - NLL_base(x)) - (NLL(a) - NLL_base(a))]) + α L_r, NLLs per token.

    a is an alternative to track x: what the base itself generates from the caption of x, once, before the first step.
    Each clip has several, which take turns from step to step. Captions bring up memorised tracks, so alternatives are
    generated without guidance; one that still has half of the first codebook's codes of the track is generated again,
    at a higher temperature. Two passes per forget clip. The paper takes sums over a sequence: see `npo`.
    """

    class Options(TrainOptions):
        """Steps, β and α are those of `npo`; one run on the tuning split: 5.0 nats.

        Alternatives of temperature 1.5 have an NLL of 3 to 5 nats, and learning them would satisfy the loss before the
        track is forgotten; at 1 it is .8 to 1.3.
        """

        steps: int = 120
        beta: float = Field(1.0, gt=0, description="β: larger stops training on a forgotten clip sooner")
        alpha: float = Field(1.0, ge=0, description="weight of the retain loss")
        alternatives: int = Field(3, ge=1, description="generations per forget clip that are preferred to it")
        temperature: float = Field(
            1.0, gt=0, description="of sampling the alternatives; higher repeats less of the track"
        )

    options: Options

    def prepare(self, session: Session) -> None:
        self._alternatives: dict[Clip, list[tuple[Clip, Tensor]]] = {clip: [] for clip in session.forget}  # and NLL
        size = min(self.options.micro_batch_size, self.options.forget_batch_size)
        for _ in range(self.options.alternatives):
            for start in range(0, len(session.forget), size):
                part = session.forget[start : start + size]
                other = self._generate(session.backend, part, session.generator)
                with torch.no_grad():
                    nll = session.backend.losses(Batch.of(other, session.backend.device))
                for clip, pair in zip(part, zip(other, nll, strict=True), strict=True):
                    self._alternatives[clip].append(pair)

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        assert step.reference is not None  # declared in the spec
        turn, beta = step.index % self.options.alternatives, self.options.beta
        other, other_nll = zip(*(self._alternatives[clip][turn] for clip in batch.clips), strict=True)
        rise = step.backend.losses(batch) - step.reference.nll(batch)
        other_rise = step.backend.losses(Batch.of(other, batch.codes.device)) - torch.stack(other_nll)
        return -2 / beta * F.logsigmoid(beta * (rise - other_rise))

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return self.options.alpha * step.backend.losses(batch)

    def _generate(self, backend: Backend, clips: Sequence[Clip], generator: torch.Generator) -> list[Clip]:
        """One alternative per clip, of its caption and length."""
        seconds = max(clip.codes.shape[-1] for clip in clips) / backend.frame_rate
        found: dict[Clip, Clip] = {}
        for hotter in range(TRIES):
            missing = [clip for clip in clips if clip not in found or _is_copy(found[clip], clip)]
            if not missing:
                break
            codes = backend.generate(
                [clip.caption for clip in missing], seconds=seconds, guidance=1.0,
                seed=int(torch.randint(2**31, (), generator=generator)),
                temperature=self.options.temperature + hotter * HOTTER,
            )  # fmt: skip
            distributed.copy_first([codes])
            found |= {
                clip: Clip(clip.track, clip.caption, row[:, : clip.codes.shape[-1]].to(clip.codes.device))
                for clip, row in zip(missing, codes, strict=True)
            }
        return [found[clip] for clip in clips]


def _is_copy(alternative: Clip, track: Clip) -> bool:
    return float((alternative.codes[0] == track.codes[0]).float().mean()) >= COPY
