"""The contract of a backend: one loaded music model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from encore.api.data import Batch
from encore.api.specs import BackendSpec
from encore.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn


class Backend(ABC):
    """One loaded music model.

    A token model (MusicGen) keeps all of the contract. A model without tokens (diffusion) sets `has_tokens = False`,
    keeps latents where others keep codes, raises UsageError from `logits` and `token_mask`, and implements `losses`
    with noise and timesteps that depend on the clip and `batch.noise_index` alone, so that two models compare pair by
    pair.

    Attributes:
        name: the spec's name.
        module: the trainable part, and nothing else. Methods change these weights only.
        sample_rate: Hz. channels: audio channels. frame_rate: codec frames a second.
        codebooks: K (channels of a latent). codebook_size: V (0 without tokens). max_frames: longest window in codec
            frames.
        text_embeddings: the encodings `encode_text` has computed or was given (from the cache on disk), a caption.
        library_name: the library that opens what `save` writes, as the hub calls it.
    """

    spec: ClassVar[BackendSpec]
    has_tokens: ClassVar[bool] = True
    library_name: ClassVar[str] = "transformers"

    name: str
    module: nn.Module
    sample_rate: int
    channels: int
    frame_rate: float
    codebooks: int
    codebook_size: int
    max_frames: int
    device: torch.device
    text_embeddings: dict[str, Tensor]

    @classmethod
    @abstractmethod
    def load(cls, model: str, *, revision: str | None = None, offline: bool = False, device: str = "cpu") -> Backend:
        """Open a model folder or hub name, in evaluation mode and float32.

        Raises:
            InputError: the folder or name is not a model of this family.
        """

    @abstractmethod
    def frozen(self) -> Mapping[str, nn.Module]:
        """The parts that must stay bit-identical (codec, text encoder), by name."""

    @abstractmethod
    def encode(self, waveforms: Tensor) -> Tensor:
        """Waveforms [N, C, S] at `sample_rate` -> codes int64 [N, K, T], or latents float32 [N, K, T]."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [N, K, T] -> waveforms [N, C, S]."""

    def latents(self, codes: Tensor) -> Tensor:
        """What the codec's decoder is given for codes [N, K, T]: float [N, D, T], channels of audio averaged.

        Raises:
            UsageError: the codec has no such thing.
        """
        if not self.has_tokens:
            return codes
        raise UsageError(f"the backend {self.name} has no latents to embed", "choose another --embedder")

    @abstractmethod
    def encode_text(self, captions: Sequence[str]) -> list[Tensor]:
        """Frozen text encodings, one [L, D] a caption without padding; computed once a caption and kept."""

    @abstractmethod
    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        """Next-token logits [N, K, T, V], aligned with `batch.codes`; meaningless where `token_mask` is False."""

    @abstractmethod
    def token_mask(self, batch: Batch) -> Tensor:
        """bool [N, K, T]: the tokens the model is trained to predict (padding and the delay's tail are False)."""

    def token_logprobs(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        """log p of each token given its past and the caption, [N, K, T]; 0 where `token_mask` is False."""
        from encore.losses import token_logprobs

        return token_logprobs(self.logits(batch, unconditional=unconditional), batch.codes, self.token_mask(batch))

    def losses(self, batch: Batch) -> Tensor:
        """Mean negative log-likelihood a token of each clip, nats, [N]; independent of the rest of the batch.

        Without tokens: the training loss of each clip, at the noise of `batch.noise_index`.
        """
        return -self.token_logprobs(batch).sum((1, 2)) / self.token_mask(batch).sum((1, 2))

    @property
    def unit(self) -> str:
        """What `losses` are in."""
        return "nats/token" if self.has_tokens else "loss"

    @property
    def settings(self) -> str:
        """What `encode`, `encode_text` and `losses` depend on beside weights, or its hash: part of cache keys."""
        return ""

    def random_losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Without tokens: the loss of each clip toward a target drawn at random in place of its own, [N].

        Args:
            generator: where the target is drawn from, on the CPU.

        Raises:
            UsageError: the backend has no such loss; with tokens it is a cross-entropy of `logits` to random codes.
        """
        raise UsageError(f"the backend {self.name} has no random target to train toward", "choose another --method")

    @abstractmethod
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
        """Play captions: codes [N, K, T] of `seconds`, which begin with `prompt` [N, K, P] where one is given.

        `temperature=0` is greedy decoding; `guidance=1` turns classifier-free guidance off, and 0 the caption: logits
        are u + guidance · (c - u), of u without the caption and c with it.
        """

    @abstractmethod
    def reinitialise(self, seed: int) -> None:
        """Draw the trainable weights anew, as before any training."""

    @abstractmethod
    def clone(self) -> Backend:
        """A copy with trainable weights of its own; the frozen parts are shared."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model in its own ecosystem's format into an existing folder.

        That is safetensors, or, where its library reads nothing else, pickles that `torch.load(weights_only=True)`
        reads: tensors and plain values.
        """
