"""A token model that shows itself as one without tokens: what a diffusion backend looks like to a method or metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encore.api import Backend, BackendSpec, Batch
from encore.errors import UsageError


class LatentBackend(Backend):
    """Clips hold float32 [K, T], the codes of the model within; its losses are told, its tokens are not.

    As in diffusion, the loss depends on `batch.noise_index`: another draw turns the codes of each clip by its number.
    """

    spec = BackendSpec("tokenless", "a backend without tokens", "encore.testing.latent_backend:LatentBackend")
    has_tokens = False
    name = "tokenless"

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.module = inner.module
        self.sample_rate, self.channels, self.frame_rate = inner.sample_rate, inner.channels, inner.frame_rate
        self.codebooks, self.codebook_size, self.max_frames = inner.codebooks, 0, inner.max_frames
        self.device, self.text_embeddings = inner.device, inner.text_embeddings

    @classmethod
    def load(
        cls, model: str, *, revision: str | None = None, offline: bool = False, device: str = "cpu"
    ) -> LatentBackend:
        """`model`: a name or folder of the embedded backend's."""
        from encore.plugins import backends

        loader = backends().resolve("musicgen")
        return cls(loader.load(model, revision=revision, offline=offline, device=device))

    def frozen(self) -> Mapping[str, nn.Module]:
        return self.inner.frozen()

    def encode(self, waveforms: Tensor) -> Tensor:
        return self.inner.encode(waveforms).float()

    def decode(self, codes: Tensor) -> Tensor:
        return self.inner.decode(self._codes(codes))

    def encode_text(self, captions: Sequence[str]) -> list[Tensor]:
        return self.inner.encode_text(captions)

    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        raise self._refusal()

    def token_mask(self, batch: Batch) -> Tensor:
        raise self._refusal()

    def losses(self, batch: Batch) -> Tensor:
        return self.inner.losses(replace(batch, codes=self._codes(batch.codes + batch.noise_index), noise_index=0))

    def random_losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        shape = batch.codes.shape
        codes = torch.randint(self.inner.codebook_size, shape, generator=generator).to(batch.codes.device)
        return self.inner.losses(replace(batch, codes=codes, noise_index=0))

    def generate(self, captions: Sequence[str], *, seconds: float, prompt: Tensor | None = None, **how: Any) -> Tensor:
        if prompt is not None:
            raise UsageError(f"the backend {self.name} can't go on from a prompt", "leave the prompt out")
        return self.inner.generate(captions, seconds=seconds, **how).float()

    def reinitialise(self, seed: int) -> None:
        self.inner.reinitialise(seed)

    def clone(self) -> LatentBackend:
        return type(self)(self.inner.clone())

    def save(self, folder: Path) -> None:
        self.inner.save(folder)

    def _codes(self, values: Tensor) -> Tensor:
        return values.round().long() % self.inner.codebook_size

    def _refusal(self) -> UsageError:
        return UsageError(f"the backend {self.name} has no tokens", "choose a method or metric that needs none")
