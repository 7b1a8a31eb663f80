"""Random labelling, the second method of "No Encore" (arXiv 2509.06277)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from encore.api import Backend, Batch, Clip, LossMethod, Session, Step
from encore.errors import UsageError
from encore.losses import token_cross_entropy
from encore.options import TrainOptions


class RandomLabels(LossMethod):
    """Cross-entropy to random codes on forget, plus α L_r.

    `uniform` labels are the paper's; `marginal` ones are drawn a codebook from how often retain uses each code. A model
    without tokens is trained toward a random target instead.
    """

    class Options(TrainOptions):
        """Tuning split: α 3 halves what retain loses (.07 nats; .18 at α 1), and forgets as much."""

        labels: Literal["uniform", "marginal"] = Field("uniform", description="where random codes are drawn from")
        alpha: float = Field(3.0, ge=0, description="weight of the retain loss")

    options: Options

    def prepare(self, session: Session) -> None:
        backend = session.backend
        if self.options.labels == "uniform":
            self._weights = torch.ones(backend.codebooks, max(backend.codebook_size, 1))
            return
        if not backend.has_tokens:
            raise UsageError(f"labels=marginal counts codes, and {backend.name} has none", "use labels=uniform")
        self._weights = code_counts(session.retain_sample(), backend)

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        if not step.backend.has_tokens:
            return step.backend.random_losses(batch, step.generator)
        clips = step.forget or batch.clips
        drawn = step.once("labels", lambda: self._draw(clips, step.generator))
        labels = drawn[[clips.index(clip) for clip in batch.clips], :, : batch.codes.shape[-1]].to(batch.codes.device)
        mask = step.backend.token_mask(batch)
        return token_cross_entropy(step.backend.logits(batch), labels, mask)

    def _draw(self, clips: Sequence[Clip], generator: torch.Generator) -> Tensor:
        """Random codes [N, K, T] for all forget clips of a step."""
        count, frames = len(clips), max(clip.codes.shape[-1] for clip in clips)
        labels = torch.multinomial(self._weights, count * frames, replacement=True, generator=generator)  # [K, NT]
        return labels.view(-1, count, frames).transpose(0, 1)

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return self.options.alpha * step.backend.losses(batch)


def code_counts(clips: Sequence[Clip], backend: Backend) -> Tensor:
    """How often clips use each code of each codebook, plus .1, on the CPU: [K, V]."""
    counts = [
        torch.bincount(torch.cat([clip.codes[k] for clip in clips]), minlength=backend.codebook_size) + 0.1
        for k in range(backend.codebooks)
    ]
    return torch.stack(counts)
