"""What the checks of a backend try it on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from encore.api import Backend, Batch, Clip
from encore.testing.core import Skip, need
from encore.testing.state import need_tensor, seed_shared, undisturbed

CAPTIONS = (
    "slow church organ",
    "lonely flute over lute arpeggios, a renaissance ballad in A minor, sparse and far away",
    "brass band march, 120 bpm",
    "solo piano",
)
SECONDS, LENGTHS = 1.6, (1.0, 0.35, 0.8, 0.55)  # of the longest clip; of the clips, as shares of it
GENERATED_FRAMES = 24  # at most


class BackendSubject:
    """A backend with the clips it is tried on, of random codes.

    Args:
        target: the class, with its `spec`.
        model: what to load.
        offline: load from disk alone.
    """

    def __init__(self, target: type[Backend], model: str, offline: bool) -> None:
        self.target, self.model, self.offline = target, model, offline

    def load(self, model: str | None = None) -> Backend:
        return self.target.load(model or self.model, offline=self.offline)

    @cached_property
    def backend(self) -> Backend:
        """Loaded once for all checks."""
        return self.load()

    @cached_property
    def fresh(self) -> Backend:
        """Loaded again, for checks of the encodings of captions, which a backend keeps."""
        return self.load()

    @cached_property
    def generated(self) -> Tensor:
        """Codes of two captions at seed 5, generated once for all checks."""
        seed_shared(1)
        return self.generate(seed=5)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        with undisturbed(*[vars(self)[name] for name in ("backend", "fresh") if name in vars(self)]):
            yield

    @cached_property
    def clips(self) -> list[Clip]:
        """Four clips of different lengths, with captions of different lengths."""
        longest = min(self.backend.max_frames, round(SECONDS * self.backend.frame_rate))
        frames = [max(2, round(share * longest)) for share in LENGTHS]
        return [Clip(str(i), CAPTIONS[i], self.codes(frames[i], seed=i)) for i in range(len(CAPTIONS))]

    def codes(self, frames: int, seed: int) -> Tensor:
        """Random codes int64 [K, T], or latents float32 [K, T]."""
        shape, generator = (self.backend.codebooks, frames), torch.Generator().manual_seed(seed)
        if self.backend.has_tokens:
            return torch.randint(self.backend.codebook_size, shape, generator=generator)
        return torch.randn(shape, generator=generator)

    def batch(self, clips: Sequence[Clip] | None = None, *, noise_index: int = 0) -> Batch:
        return Batch.of(self.clips if clips is None else clips, self.backend.device, noise_index=noise_index)

    @property
    def generated_frames(self) -> int:
        return min(GENERATED_FRAMES, self.clips[0].codes.shape[-1])

    def generate(self, captions: int = 2, **settings: Any) -> Tensor:
        """Codes of the first captions, of `generated_frames`."""
        seconds = self.generated_frames / self.backend.frame_rate
        return self.backend.generate(CAPTIONS[:captions], seconds=seconds, **settings)

    def with_tokens(self, wanted: bool = True) -> Backend:
        """The backend; skip the check where it has no tokens, or has some that are not wanted."""
        if self.backend.has_tokens != wanted:
            raise Skip(f"the backend has {'no ' if wanted else ''}tokens")
        return self.backend

    def need_codes(self, name: str, codes: Tensor, count: int) -> None:
        """Raise the fault of codes int64 [N, K, T] or latents float32 [N, K, T]."""
        dtype, size = torch.int64 if self.backend.has_tokens else torch.float32, self.backend.codebook_size
        need_tensor(name, codes, (count, self.backend.codebooks, None), dtype, gradient=False)
        low, high = codes.min(), codes.max()
        need(not size or 0 <= low <= high < size, f"{name}: codes from {low} to {high}, codebook_size {size}")


def storage(weight: Tensor) -> tuple[int, torch.Size]:
    """Where a weight is in memory, and its shape."""
    return weight.data_ptr(), weight.shape
