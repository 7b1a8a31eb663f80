"""The contract of an embedder: sounds, and perhaps texts, to vectors."""

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
    """Waveforms to vectors. Two distances compare only where `identity` is the same.

    Beside `embed`, an embedder may read texts into the same space (`embed_text`), and say what it hears (`tags`).

    Attributes:
        sample_rate: Hz it expects. identity: name, revision and weight hash in one string.
        tag_names: what the columns of `tags` are, [C]; empty for an embedder without tags.
    """

    spec: ClassVar[EmbedderSpec]
    sample_rate: int
    identity: str
    tag_names: Sequence[str] = ()

    @classmethod
    @abstractmethod
    def open(cls, backend: Backend) -> Embedder:
        """Load it. `backend` is the model under evaluation: its device, and its codec for an embedder that uses that.

        Raises:
            InputError: it can't work beside this backend, or its weights can't be had.
        """

    @classmethod
    def open_weights(cls, backend: Backend, model: str = "", *, offline: bool = False) -> Embedder:
        """Load it with weights by hub name (`owner/name`, `owner/name@revision`) or folder; empty for its own.

        For an embedder whose weights can be chosen, or are fetched from a hub: `offline` then forbids that.

        Raises:
            UsageError: weights were named, and it has none to choose. InputError: as `open`.
        """
        if model:
            raise UsageError(
                f"the embedder {cls.spec.name} has no weights to choose", f"say --embedder {cls.spec.name}"
            )
        return cls.open(backend)

    @abstractmethod
    def embed(self, waveforms: Tensor) -> Tensor:
        """Mono waveforms [N, S] at `sample_rate`, of any length -> float32 [N, D]."""

    def embed_codes(self, codes: Tensor) -> Tensor | None:
        """Codes [N, K, T] of the backend it was opened with -> [N, D]; None: decode them, and call `embed`.

        For an embedder that reads the codec's codes anyway: a clip's codes must give what its waveform gives.
        """
        return None

    def embed_text(self, texts: Sequence[str]) -> Tensor | None:
        """Texts -> float32 [N, D] in the space of `embed`; None for an embedder that reads none."""
        return None

    def tags(self, waveforms: Tensor) -> Tensor | None:
        """Mono waveforms [N, S] -> probabilities float32 [N, C] of `tag_names`; None for an embedder without tags.

        A row sums to 1 where one of the tags must apply (a softmax); where any number may (sigmoids), it need not.
        """
        return None

    def hear(self, waveforms: Tensor) -> tuple[Tensor, Tensor | None]:
        """`embed` and `tags` of the same waveforms; to override where one forward pass gives both."""
        return self.embed(waveforms), self.tags(waveforms)
