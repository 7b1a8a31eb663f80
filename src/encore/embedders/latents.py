"""The model's codec as an embedder, without a download."""

from __future__ import annotations

import torch
from torch import Tensor

from encore.api import Backend, Embedder
from encore.errors import InputError
from encore.hashing import module_sha256


class Latents(Embedder):
    """Mean and standard deviation over time of the input of the codec's decoder, [N, 2 D].

    Codes determine it, so generations are embedded without decoding, with the same result as from waveforms.
    """

    def __init__(self, backend: Backend) -> None:
        codec = backend.frozen().get("codec")
        if codec is None or (backend.has_tokens and type(backend).latents is Backend.latents):
            raise InputError(
                f"the embedder latents needs a codec that has some, and {backend.name} has not",
                "choose another --embedder",
            )
        self._backend = backend
        self.sample_rate = backend.sample_rate
        self.identity = f"codec-latents-mean-std/1 sha256:{module_sha256(codec)[:16]}"

    @classmethod
    def open(cls, backend: Backend) -> Latents:
        return cls(backend)

    def embed(self, waveforms: Tensor) -> Tensor:
        channels = waveforms[:, None].expand(-1, self._backend.channels, -1)
        return self.embed_codes(self._backend.encode(channels))

    @torch.no_grad()
    def embed_codes(self, codes: Tensor) -> Tensor:
        latents = self._backend.latents(codes.to(self._backend.device))  # [N, D, T]
        return torch.cat([latents.mean(-1), latents.std(-1, unbiased=False)], -1).float().cpu()
