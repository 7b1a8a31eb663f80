"""A model without tokens whose every figure can be worked out by hand: a linear denoiser of latents, a caption a bias.

Noise e is drawn from a clip's content and the batch's draw alone; the loss is the mean of (W (x + e) + b - e)². The
"codec" averages pairs of samples, so that latents of [K, T] hold 2 K T samples.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from encore.api import Backend, Batch, Clip
from encore.errors import UsageError

K, RATE = 3, 1000.0


class LatentBackend(Backend):
    """`module` has W [K, K] and b [K]."""

    name = "latent"
    has_tokens = False
    sample_rate, channels, frame_rate = int(2 * K * RATE), 1, RATE
    codebooks, codebook_size, max_frames = K, 0, 4000
    device = torch.device("cpu")

    def __init__(self, seed: int = 0) -> None:
        self.module = nn.Linear(K, K)
        self.codec = nn.AvgPool1d(2)
        self.text_embeddings = {}
        self.reinitialise(seed)

    @classmethod
    def load(cls, model: str, *, revision: str | None = None, offline: bool = False, device: str = "cpu") -> Backend:
        backend = cls()
        if Path(model, "weights.pt").exists():
            backend.module.load_state_dict(torch.load(Path(model, "weights.pt"), weights_only=True))
        return backend

    def frozen(self) -> Mapping[str, nn.Module]:
        return {"codec": self.codec}

    def encode(self, waveforms: Tensor) -> Tensor:
        return self.codec(waveforms).reshape(len(waveforms), -1, K).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.transpose(1, 2).flatten(1)[:, None].repeat_interleave(2, -1)

    def encode_text(self, captions: Sequence[str]) -> list[Tensor]:
        for caption in captions:
            self.text_embeddings[caption] = torch.full((1, K), len(caption) / 100)
        return [self.text_embeddings[caption] for caption in captions]

    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        raise UsageError(f"the backend {self.name} has no tokens")

    def token_mask(self, batch: Batch) -> Tensor:
        raise UsageError(f"the backend {self.name} has no tokens")

    def losses(self, batch: Batch) -> Tensor:
        return self._losses(batch, [noise(clip, batch.noise_index) for clip in batch.clips])

    def random_losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self._losses(batch, [torch.randn(clip.codes.shape, generator=generator) for clip in batch.clips])

    def _losses(self, batch: Batch, targets: Sequence[Tensor]) -> Tensor:
        """Clips of one length only."""
        noisy = torch.stack([clip.codes + noise(clip, batch.noise_index) for clip in batch.clips])  # [N, K, T]
        bias = torch.stack(self.encode_text(batch.captions))  # [N, 1, K]
        return (self.module(noisy.mT) + bias - torch.stack(list(targets)).mT).square().mean((1, 2))

    @torch.no_grad()
    def generate(
        self,
        captions: Sequence[str],
        *,
        seconds: float,
        prompt: Tensor | None = None,
        seed: int = 0,
        guidance: float = 3.0,
        temperature: float = 1.0,
        top_k: int = 250,
    ) -> Tensor:
        rows = [
            torch.randn(K, round(seconds * RATE), generator=torch.Generator().manual_seed(seed + i))
            for i in range(len(captions))
        ]
        return torch.stack([row - self.module(row.T).T for row in rows])

    def reinitialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.module.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) / 3)

    def clone(self) -> Backend:
        twin = copy.copy(self)
        twin.module = copy.deepcopy(self.module)
        return twin

    def save(self, folder: Path) -> None:
        torch.save(self.module.state_dict(), folder / "weights.pt")


def noise(clip: Clip, draw: int) -> Tensor:
    """Standard normal, [K, T], from the clip's latents and the draw."""
    key = hashlib.sha256(clip.codes.contiguous().numpy().tobytes() + str(draw).encode()).digest()
    return torch.randn(clip.codes.shape, generator=torch.Generator().manual_seed(int.from_bytes(key[:7], "little")))


def latent_clips(count: int, frames: int = 8, first: int = 0) -> list[Clip]:
    """Clips of random latents, `t0` and on."""
    return [
        Clip(f"t{i}", "slow " * (1 + i % 3), torch.randn(K, frames, generator=torch.Generator().manual_seed(i)))
        for i in range(first, first + count)
    ]
