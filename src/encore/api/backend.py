"""The contract of a backend: one loaded music model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
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

    A token model (MusicGen) implements all methods. A model without tokens (diffusion) sets `has_tokens = False`,
    has latents in place of codes, raises UsageError from `logits` and `token_mask`, and implements `losses` with noise
    and timesteps that depend on the clip and `batch.noise_index` alone, so that two models compare pair by pair.

    Attributes:
        spec: the spec it was registered with.
        has_tokens: whether it models discrete codes.
        library_name: the library that opens what `save` writes, by its name on the Hugging Face Hub.
        name: the spec's name.
        module: the trainable part, and nothing else. Methods change these weights only.
        sample_rate: Hz.
        channels: audio channels C.
        frame_rate: codec frames per second.
        codebooks: K; without tokens, channels of a latent.
        codebook_size: V; 0 without tokens.
        max_frames: length of the longest window, in codec frames.
        device: where the weights are.
        text_embeddings: caption -> encoding [L, D]; computed by `encode_text`, or read from the cache on disk. An
            encoding that is put there is used in place of the text encoder's, in `losses` with a gradient to it
            (optional: metrics that train prompts are not measured on a backend without).
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
        """Open a model in evaluation mode and float32.

        Args:
            model: a folder, or a name on the hub.
            revision: branch, tag or commit on the hub.
            offline: use downloaded files only.
            device: where the weights go, as torch names it.

        Raises:
            InputError: the folder or name is not a model of this family.
        """

    @abstractmethod
    def frozen(self) -> Mapping[str, nn.Module]:
        """The parts that must stay bit-identical (such as "codec", "text_encoder"), by name."""

    @abstractmethod
    def encode(self, waveforms: Tensor) -> Tensor:
        """Encode audio.

        Args:
            waveforms: [N, C, S] at `sample_rate`.

        Returns:
            Codes int64 [N, K, T]; without tokens, latents float32 [N, K, T].
        """

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (without tokens: latents) [N, K, T] to waveforms [N, C, S] at `sample_rate`."""

    def latents(self, codes: Tensor) -> Tensor:
        """The input of the codec's decoder for some codes.

        Args:
            codes: [N, K, T].

        Returns:
            float [N, D, T], the mean over audio channels.

        Raises:
            UsageError: the codec has no latents.
        """
        if not self.has_tokens:
            return codes
        raise UsageError(f"the backend {self.name} has no latents to embed", "choose another --embedder")

    @abstractmethod
    def encode_text(self, captions: Sequence[str]) -> list[Tensor]:
        """Frozen text encodings, one unpadded [L, D] per caption; each caption is encoded once and then cached."""

    @abstractmethod
    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        """Next-token logits.

        Args:
            batch: N clips.
            unconditional: leave out the captions.

        Returns:
            [N, K, T, V], aligned with `batch.codes`; meaningless where `token_mask` is False.

        Raises:
            UsageError: the model has no tokens.
        """

    @abstractmethod
    def token_mask(self, batch: Batch) -> Tensor:
        """The tokens the model is trained to predict: bool [N, K, T], False in padding and in the delay pattern's tail.

        Raises:
            UsageError: the model has no tokens.
        """

    def token_logprobs(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        """Log-probability of each token given its past and the caption.

        Args:
            batch: N clips.
            unconditional: leave out the captions.

        Returns:
            Natural logarithms [N, K, T]; 0 where `token_mask` is False.

        Raises:
            UsageError: the model has no tokens.
        """
        from encore.losses import token_logprobs

        return token_logprobs(self.logits(batch, unconditional=unconditional), batch.codes, self.token_mask(batch))

    def losses(self, batch: Batch) -> Tensor:
        """Loss of each clip, [N], independent of the rest of the batch.

        With tokens: mean negative log-likelihood in nats per token. Without tokens: the training loss, at the noise of
        `batch.noise_index`.
        """
        return -self.token_logprobs(batch).sum((1, 2)) / self.token_mask(batch).sum((1, 2))

    @classmethod
    def default_method(cls) -> str:
        """The method of `encore forget` where none is named."""
        return "encore" if cls.has_tokens else "encore-diffusion"

    @classmethod
    def unmet(cls, needs: AbstractSet[str]) -> str:
        """Why a method can't run on a model of this family, as a predicate ("needs ..."); empty where it can.

        Args:
            needs: what the method's spec declares.
        """
        name = cls.spec.name
        if "logits" in needs and not cls.has_tokens:
            return f"needs a token model, and {name} is not one"
        if "predictions" in needs and cls.has_tokens:
            return f"is for models without tokens, and {name} has them"
        if "predictions" in needs and cls.predictions is Backend.predictions:
            return f"needs a network's outputs at noise levels, and {name} gives none"
        if "hidden" in needs and cls.blocks is Backend.blocks:
            return f"needs hidden states, and {name} gives none"
        return ""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The residual blocks of `module`, from input to output; to override where a block's output is [N, T, D].

        Raises:
            UsageError: the network is not a sequence of blocks of the same width.
        """
        raise UsageError(f"the backend {self.name} gives no hidden states", "choose another --method")

    def hidden(self, batch: Batch, depth: float) -> Tensor:
        """Hidden states after a share of the blocks, with gradient; later blocks are not run.

        A method that uses them declares `needs={"hidden"}`.

        Args:
            batch: N clips. Without tokens: with the noise of `batch.noise_index`.
            depth: share of the blocks, above 0 and at most 1.

        Returns:
            [N, T, D], one vector of width D per frame; meaningless where `batch.frame_mask` is False.

        Raises:
            UsageError: the network has no such blocks.
        """
        from encore.hidden_states import output_of

        blocks = self.blocks
        return output_of(blocks[max(1, round(depth * len(blocks))) - 1], lambda: self.losses(batch))

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Without tokens: the network's outputs, and the targets that `losses` compares them with.

        `losses` is their mean squared difference over S, K and a clip's own frames; where the training loss weighs
        noise levels, both have the square root of the weight as a factor.

        Args:
            batch: N clips. Noise and targets depend on their latents and `batch.noise_index` alone, not on captions.

        Returns:
            Outputs, with gradient, and targets, without; each [N, S, K, T], S noise levels, and 0 where
            `batch.frame_mask` is False.

        Raises:
            UsageError: the backend gives none; with tokens, use `logits`.
        """
        raise UsageError(f"the backend {self.name} gives no predictions at noise levels", "choose another --method")

    @property
    def unit(self) -> str:
        """Unit of `losses`."""
        return "nats/token" if self.has_tokens else "loss"

    @property
    def settings(self) -> str:
        """Settings that `encode`, `encode_text` and `losses` depend on beside the weights, or their hash.

        Part of cache keys.
        """
        return ""

    def random_losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Without tokens: loss of each clip toward a random target in place of its true one, [N].

        Args:
            batch: N clips.
            generator: source of the target, on the CPU.

        Raises:
            UsageError: the backend has no such loss; with tokens, use the cross-entropy of `logits` to random codes.
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
        """Generate audio from captions.

        Args:
            captions: N texts.
            seconds: length of each generation, prompt included.
            prompt: codes [N, K, P] that the generations begin with.
            seed: of the random draws.
            guidance: scale of classifier-free guidance: logits are u + guidance · (c - u), u without the caption and c
                with it. 1 turns guidance off; 0 leaves out the caption.
            temperature: of sampling; 0 is greedy decoding.
            top_k: sample among this many likeliest codes.

        Returns:
            Codes [N, K, T]; without tokens, latents.

        Raises:
            UsageError: the model can't take a prompt, or can't generate so many seconds.
        """

    @abstractmethod
    def reinitialise(self, seed: int) -> None:
        """Draw new trainable weights from their initial distribution, as before any training.

        Args:
            seed: of the random draws.
        """

    @abstractmethod
    def clone(self) -> Backend:
        """A copy with separate trainable weights; the frozen parts are shared."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model in the format of `library_name`.

        The weights are safetensors, or, where the library reads nothing else, pickles that
        `torch.load(weights_only=True)` reads: tensors and plain values.

        Args:
            folder: an existing folder.
        """
