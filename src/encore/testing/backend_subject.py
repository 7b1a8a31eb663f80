"""A backend under test, and the clips it is tried on: of random codes, whatever `encode` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from encore.api import Backend, Batch, Clip
from encore.testing.core import Skip
from encore.testing.global_state import undisturbed

CAPTIONS = (
    "slow church organ",
    "lonely flute over lute arpeggios, a renaissance ballad in A minor, sparse and far away",
    "brass band march, 120 bpm",
    "solo piano",
)
SECONDS = 1.6  # of the longest clip
SHARES = (1.0, 0.35, 0.8, 0.55)  # of it, a clip


class BackendSubject:
    """What the checks of a backend look at.

    Args:
        target: the class, with its `spec`. model: what to load. offline: from disk alone.
    """

    def __init__(self, target: type[Backend], model: str, *, offline: bool = False) -> None:
        self.target, self.model, self.offline = target, model, offline
        self._loaded: Backend | None = None
        self.kept: dict[str, Tensor] = {}  # what checks share

    def load(self, model: str | None = None) -> Backend:
        """A model anew."""
        return self.target.load(model or self.model, offline=self.offline)

    @property
    def backend(self) -> Backend:
        """The one that all checks share; they leave it as it was."""
        if self._loaded is None:
            self._loaded = self.load()
        return self._loaded

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        if self._loaded is None:
            yield
            return
        with undisturbed(self._loaded):
            yield

    # ------------------------------------------------------------------------------------------------------- music

    @cached_property
    def frames(self) -> int:
        """Length of the longest clip."""
        backend = self.backend
        return max(2, min(backend.max_frames, round(SECONDS * backend.frame_rate)))

    @cached_property
    def clips(self) -> list[Clip]:
        """Four clips of different lengths, under captions of different lengths."""
        return [
            Clip(str(i), caption, self.codes(max(2, round(share * self.frames)), seed=i))
            for i, (caption, share) in enumerate(zip(CAPTIONS, SHARES, strict=True))
        ]

    def codes(self, frames: int, seed: int) -> Tensor:
        """Random codes int64 [K, T], or latents float32 [K, T]."""
        backend, generator = self.backend, torch.Generator().manual_seed(seed)
        if backend.has_tokens:
            return torch.randint(backend.codebook_size, (backend.codebooks, frames), generator=generator)
        return torch.randn(backend.codebooks, frames, generator=generator)

    def batch(self, clips: Sequence[Clip] | None = None, *, noise_index: int = 0) -> Batch:
        return Batch.of(self.clips if clips is None else clips, self.backend.device, noise_index=noise_index)

    def sound(self, count: int = 2) -> Tensor:
        """Tones over noise, [count, C, S], as long as the longest clip."""
        backend, generator = self.backend, torch.Generator().manual_seed(7)
        samples = round(self.frames / backend.frame_rate * backend.sample_rate)
        time = torch.arange(samples) / backend.sample_rate
        tones = [torch.sin(2 * torch.pi * 220.0 * (i + 1) * time) for i in range(count)]
        noise = torch.randn(count, backend.channels, samples, generator=generator)
        return 0.3 * torch.stack(tones)[:, None] + 0.02 * noise

    def with_tokens(self) -> Backend:
        """The backend; the check is skipped where it has no tokens."""
        if not self.backend.has_tokens:
            raise Skip("the backend has no tokens")
        return self.backend

    def without_tokens(self) -> Backend:
        """The backend; the check is skipped where it has tokens."""
        if self.backend.has_tokens:
            raise Skip("the backend has tokens")
        return self.backend
