"""The contract of a metric: what it reads, and the rows it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from encore.api.backend import Backend
from encore.api.data import Clip
from encore.api.embedder import Embedder
from encore.api.specs import MetricSpec

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Made = TypeVar("Made")


Role = Literal["base", "unlearned", "gold", "gold2", "control"]
ClipSet = Literal["forget", "retain", "holdout"]
Source = Role | Literal["audio", "recorded"]  # a model's generations, the decoded clips, their audio files


@dataclass(frozen=True)
class Result:
    """One row of `metrics.json`.

    Args:
        metric: name of the figure.
        model: the role it was measured on ("none" for a test without any model).
        set: the clips it was measured on.
        value: the figure; None where it could not be measured.
        low: lower end of the 95 % interval; None where there is none.
        high: upper end of the interval.
        n: number of tracks (or generations) measured.
        unit: "nats/token", "share", "AUC"; "" for a bare number.
        direction: which way is better: lower, higher, or close to the figure of gold or base.
        per_track: track id -> figure; None where a track's figure is not finite.
        why: why `value` is None, in one sentence.
        note: what a reader must know to interpret the figure, in one sentence.
        details: further data that JSON can hold, such as relearn's curve or the embedder's identity.
        version: of the metric's definition, from its spec; the evaluation fills it in.
    """

    metric: str
    model: str
    set: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    unit: str = ""
    direction: Literal["gold", "lower", "higher", "base"] = "gold"
    per_track: Mapping[str, float | None] = field(default_factory=dict)
    why: str | None = None
    note: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)
    version: int = 1


class Evaluation(ABC):
    """What a metric reads: models and clips, with every costly result computed once and shared.

    Returned values are shared: don't change them in place. Lists hold one item per clip, in the order of `clips[set]`.

    Attributes:
        models: role -> loaded model; a role may be absent.
        clips: set -> clips; a set may be absent.
        track_metadata: track id -> metadata beside the caption ("artist", "genre"); a track may be absent.
        seed: for every random draw.
        force: also compute figures that are known to be mostly bias, with a note that says so.
        embedder: the first of `embedders`; None without one.
        embedders: the requested embedders that could be opened, by name.
        unopened: the requested embedders that could not be opened: name -> why.
    """

    models: Mapping[Role, Backend]
    clips: Mapping[ClipSet, Sequence[Clip]]
    track_metadata: Mapping[str, Mapping[str, str]]
    seed: int
    force: bool
    embedder: Embedder | None
    embedders: Mapping[str, Embedder]
    unopened: Mapping[str, str]

    @abstractmethod
    def backend(self, model: Role) -> Backend:
        """The model of a role; `control`, an untrained model, is created from another one on first use.

        Raises:
            KeyError: the role is absent.
        """

    @abstractmethod
    def batches(self, clips: Sequence[Clip]) -> Iterable[Sequence[Clip]]:
        """Clips in groups small enough for one forward (and backward) pass."""

    @abstractmethod
    def nll(self, model: Role, clips: ClipSet) -> Mapping[str, float]:
        """Track id -> mean NLL in nats per token (without tokens: mean loss); windows are weighted by their tokens.

        Raises:
            KeyError: the role or the set is absent (as in all methods below).
        """

    @abstractmethod
    def token_mask(self, clips: ClipSet) -> list[Tensor]:
        """The tokens that a model is trained to predict, one bool [K, T] per clip."""

    @abstractmethod
    def token_logprobs(self, model: Role, clips: ClipSet, *, unconditional: bool = False) -> list[Tensor]:
        """Log-probability of each token given its past and the caption.

        Args:
            model: the model's role.
            clips: the set.
            unconditional: leave out the captions.

        Returns:
            One float32 [K, T] per clip, natural logarithms, 0 where masked.
        """

    @abstractmethod
    def predictions(self, model: Role, clips: ClipSet) -> list[Tensor]:
        """The likeliest code given the true past, one int64 [K, T] per clip, -1 where masked."""

    @abstractmethod
    def kl(self, target: Role, model: Role, clips: ClipSet) -> list[Tensor]:
        """KL(target ‖ model) at each token, in nats, one float32 [K, T] per clip, 0 where masked."""

    @abstractmethod
    def continuations(self, model: Role, clips: ClipSet, prompt_frames: int) -> list[Tensor]:
        """Greedy continuations of clips, without guidance.

        Args:
            model: the model's role.
            clips: the set.
            prompt_frames: the model is given the caption and this many of the clip's first frames.

        Returns:
            One codes [K, T] per clip, prompt included; T is the clip's length, at most `prompt_frames` plus the
            evaluation's limit. A clip no longer than the prompt is returned unchanged.
        """

    @abstractmethod
    def generations(self, model: Role, clips: ClipSet) -> list[Tensor]:
        """Codes [K, T] sampled from the tracks' captions without a prompt, one or more per track, ordered by track id.

        Item i of every model has the same caption and the same noise.
        """

    @abstractmethod
    def embeddings(self, source: Source, clips: ClipSet, embedder: str = "") -> np.ndarray:
        """Embeddings [N, D] of a model's `generations`, of the decoded clips (`audio`), or of their files (`recorded`).

        Args:
            source: a model's role, "audio" or "recorded".
            clips: the set.
            embedder: name in `embedders`; empty for the first.

        Raises:
            EncoreError: there is no embedder, or the files are not available.
        """

    @abstractmethod
    def tags(self, source: Source, clips: ClipSet, embedder: str = "") -> np.ndarray | None:
        """Probabilities [N, C] of the embedder's tags, arguments and errors as in `embeddings`; None without tags."""

    @abstractmethod
    def has_audio(self, clips: ClipSet) -> bool:
        """Whether the audio files of a set's tracks are available, for the source `recorded`."""

    @abstractmethod
    def embed(self, codes: Sequence[Tensor]) -> np.ndarray:
        """Embeddings [N, D] of any N codes, [K, T] each, by the first embedder.

        Raises:
            EncoreError: there is no embedder.
        """

    @abstractmethod
    def derive(
        self,
        *,
        models: Mapping[Role, Backend] | None = None,
        clips: Mapping[ClipSet, Sequence[Clip]] | None = None,
        seed: int | None = None,
    ) -> Evaluation:
        """The same evaluation of other models, on other clips, or with another seed.

        Used for a quantised copy or for paraphrased captions, for example. The result computes and caches on its own.

        Args:
            models: role -> model; None keeps the models.
            clips: set -> clips; None keeps the clips.
            seed: None keeps the seed.
        """

    @abstractmethod
    def cached(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returns, computed once per key in this evaluation.

        Args:
            key: your metric's name, then everything that the result depends on beside the evaluation.
            make: computes the result.
        """

    @abstractmethod
    def cached_on_disk(
        self,
        key: Hashable,
        make: Callable[[], Mapping[str, Tensor]],
        *,
        models: Sequence[Role],
        clips: Sequence[Clip],
    ) -> Mapping[str, Tensor]:
        """What `make` returns, computed once and read from disk by later evaluations.

        For costly results. The cache key already covers the models' weights, the clips, the evaluation's seed and batch
        sizes, library versions, and the code of Encore and of every plugin. Without a cache on disk this is `cached`.

        Args:
            key: strings, numbers, None and tuples of them: your metric's name, then everything else that the result
                depends on, such as a number of steps, or the version of a library that Encore does not know.
            make: computes the tensors, by name.
            models: roles of all models that `make` reads, in order.
            clips: all clips that `make` reads, in order.
        """


class Metric(ABC):
    """One metric: reads an `Evaluation`, returns rows for every model and set it measures.

    Attributes:
        spec: the spec it was registered with.
    """

    spec: ClassVar[MetricSpec]

    @abstractmethod
    def measure(self, evaluation: Evaluation) -> Iterable[Result]:
        """Rows of `metrics.json`. A figure that can't be measured is a row with `why`, never left out."""
