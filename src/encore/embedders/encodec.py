"""The model's own codec as an embedder: no download, and it hears what the model can say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from encore.api import Backend, Embedder
from encore.errors import InputError
from encore.fingerprint import module_sha256


class EncodecEmbedder(Embedder):
    """Mean and standard deviation over time of EnCodec's quantised latents, [N, 2 D].

    The quantised latents are what the codec's decoder is given, and a clip's codes hold all of them: a clip embeds
    alike from its waveform and from its codes, and generations, which are codes, need not be played and heard again.
    """

    def __init__(self, backend: Backend) -> None:
        codec = backend.frozen().get("codec")
        if codec is None or not hasattr(codec, "quantizer"):
            raise InputError("the embedder encodec needs a model with an EnCodec codec", "choose another --embedder")
        self._backend = backend
        self._quantizer: Any = codec.quantizer
        self.sample_rate = backend.sample_rate
        self.identity = f"encodec-latents-mean-std/1 sha256:{module_sha256(codec)[:16]}"

    @classmethod
    def open(cls, backend: Backend) -> EncodecEmbedder:
        return cls(backend)

    def embed(self, waveforms: Tensor) -> Tensor:
        channels = waveforms[:, None].expand(-1, self._backend.channels, -1)
        return self.embed_codes(self._backend.encode(channels))

    @torch.no_grad()
    def embed_codes(self, codes: Tensor) -> Tensor:
        count, channels = len(codes), self._backend.channels
        split = codes.to(self._backend.device).reshape(count, -1, channels, codes.shape[-1])
        latents = self._quantizer.decode(split.permute(1, 0, 2, 3).flatten(1, 2))  # [K / C, N * C, T] -> [N * C, D, T]
        latents = latents.reshape(count, channels, *latents.shape[1:]).mean(1)  # [N, D, T]
        return torch.cat([latents.mean(-1), latents.std(-1, unbiased=False)], -1).float().cpu()
