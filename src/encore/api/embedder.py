"""The contract of an embedder: audio, and for some embedders text, to vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from encore.api.backend import Backend
from encore.api.specs import EmbedderSpec
from encore.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


class Embedder(ABC):
    """Maps waveforms to vectors. Two distances compare only where `identity` is the same.

    Beside `embed`, an embedder may map texts into the same space (`embed_text`), and predict tags (`tags`).

    Attributes:
        spec: the spec it was registered with.
        sample_rate: of the waveforms it expects, Hz.
        identity: name, revision and weight hash in one string.
        tag_names: names of the columns of `tags`, [C]; empty for an embedder without tags.
    """

    spec: ClassVar[EmbedderSpec]
    sample_rate: int
    identity: str
    tag_names: Sequence[str] = ()

    @classmethod
    @abstractmethod
    def open(cls, backend: Backend) -> Embedder:
        """Load the embedder.

        Args:
            backend: the model under evaluation: gives the device, and the codec to an embedder that uses it.

        Raises:
            InputError: it can't work with this backend, or its weights can't be loaded.
        """

    @classmethod
    def open_weights(cls, backend: Backend, model: str = "", *, offline: bool = False) -> Embedder:
        """Load the embedder with chosen weights; to override where weights can be chosen or are fetched from a hub.

        Args:
            backend: as in `open`.
            model: hub name (`owner/name`, `owner/name@revision`) or folder; empty for the default weights.
            offline: use downloaded files only.

        Raises:
            UsageError: weights were named, and the embedder has none to choose.
            InputError: as in `open`.
        """
        if model:
            raise UsageError(
                f"the embedder {cls.spec.name} has no weights to choose", f"say --embedder {cls.spec.name}"
            )
        return cls.open(backend)

    @abstractmethod
    def embed(self, waveforms: Tensor) -> Tensor:
        """Embed mono waveforms [N, S] at `sample_rate`, of any length, as float32 [N, D]."""

    def embed_codes(self, codes: Tensor) -> Tensor | None:
        """Embed codes directly; to override in an embedder that reads the backend's codes.

        Args:
            codes: [N, K, T], of the backend the embedder was opened with.

        Returns:
            float32 [N, D], equal to `embed` of the clips' waveforms; None where codes must be decoded and embedded.
        """
        return None

    def embed_text(self, texts: Sequence[str]) -> Tensor | None:
        """Embed N texts as float32 [N, D] in the space of `embed`; None for an embedder without text."""
        return None

    def tags(self, waveforms: Tensor) -> Tensor | None:
        """Predict tags.

        Args:
            waveforms: mono, [N, S] at `sample_rate`.

        Returns:
            Probabilities float32 [N, C] of `tag_names`; a row sums to 1 where tags exclude each other (softmax), and
            need not where several may apply (sigmoids). None for an embedder without tags.
        """
        return None

    def embed_with_tags(self, waveforms: Tensor) -> tuple[Tensor, Tensor | None]:
        """`embed` and `tags` of the same waveforms [N, S]; to override where one forward pass computes both."""
        return self.embed(waveforms), self.tags(waveforms)
