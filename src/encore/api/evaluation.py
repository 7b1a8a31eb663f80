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
Source = Role | Literal["audio", "recorded"]  # whose sound: a model's generations, the clips as codes, their files


@dataclass(frozen=True)
class Result:
    """One row of `metrics.json`.

    Args:
        metric: the row's metric name. model: which role it was measured on ("none" for a test without any model).
        set: on which clips.
        value: the figure, None where it could not be measured; then `why` says why, in one sentence.
        low, high: ends of the 95 % interval, None where there is none.
        n: how many tracks (or generations) the figure rests on.
        unit: "nats/token", "share", "AUC"; "" for a bare number.
        direction: which way is better for a model that has forgotten and kept: "gold" means close to gold's figure.
        per_track: figure a track id; None where a track's figure is not finite.
        note: what a reader must know to read the figure rightly, in one sentence.
        details: what else belongs to it, as JSON: relearn's curve, the embedder's identity.
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
    """What a metric reads: models and clips, and everything costly computed once and shared.

    What is returned is shared: don't write into it. Lists hold one item a clip, in the order of `clips[set]`.

    Attributes:
        models: the roles that were given -> loaded model. clips: set -> clips; a set may be absent.
        seed: for every random draw. force: measure also where a figure is known to be mostly bias, and say so.
        embedder: the first of `embedders`; None where none was asked for, or could be had.
        embedders: what was asked for and could be opened, by name.
        unopened: what was asked for and could not, by name, and why.
        track_metadata: what is known of a track beside its caption, by its id: "artist", "genre". A track may be
            absent.
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
        """The model of a role; `control`, the never-trained one, is made from another on first use.

        Raises:
            KeyError: the role was not given.
        """

    @abstractmethod
    def batches(self, clips: Sequence[Clip]) -> Iterable[Sequence[Clip]]:
        """Clips in pieces small enough for one forward (and backward) pass."""

    @abstractmethod
    def nll(self, model: Role, clips: ClipSet) -> Mapping[str, float]:
        """Mean NLL a token of each track, nats; a track's windows count by their tokens. Also without tokens."""

    @abstractmethod
    def token_mask(self, clips: ClipSet) -> list[Tensor]:
        """Which tokens a model is trained to predict, one bool [K, T] a clip."""

    @abstractmethod
    def token_logprobs(self, model: Role, clips: ClipSet, *, unconditional: bool = False) -> list[Tensor]:
        """log p of each token given its past and the caption, one float32 [K, T] a clip, 0 where masked."""

    @abstractmethod
    def predictions(self, model: Role, clips: ClipSet) -> list[Tensor]:
        """The likeliest code given the true past, int64 [K, T] a clip, -1 where masked."""

    @abstractmethod
    def kl(self, target: Role, model: Role, clips: ClipSet) -> list[Tensor]:
        """KL(target ‖ model) of each token, nats, one [K, T] a clip, 0 where masked."""

    @abstractmethod
    def continuations(self, model: Role, clips: ClipSet, prompt_frames: int) -> list[Tensor]:
        """Greedy codes [K, T], without guidance, after the caption and the clip's first `prompt_frames` frames.

        T is the clip's length, at most `prompt_frames` plus the evaluation's limit. A clip no longer than the prompt
        comes back as it is.
        """

    @abstractmethod
    def generations(self, model: Role, clips: ClipSet) -> list[Tensor]:
        """Sampled codes [K, T], one or more a track's caption (no prompt), in the order of track ids.

        Item i of every model has the same caption and the same noise.
        """

    @abstractmethod
    def embeddings(self, source: Source, clips: ClipSet, embedder: str = "") -> np.ndarray:
        """Embeddings [N, D] of a model's `generations`, of the clips (`audio`), or of their files (`recorded`).

        Args:
            embedder: one of `embedders` by name, the first one where none is named.

        Raises:
            EncoreError: no embedder was chosen, or the files are not at hand.
        """

    @abstractmethod
    def tags(self, source: Source, clips: ClipSet, embedder: str = "") -> np.ndarray | None:
        """Probabilities [N, C] of the embedder's tags, as `embeddings`; None where it has no tags."""

    @abstractmethod
    def has_audio(self, clips: ClipSet) -> bool:
        """Whether the files of a set's tracks are at hand, for the source `recorded`."""

    @abstractmethod
    def embed(self, codes: Sequence[Tensor]) -> np.ndarray:
        """Embeddings [N, D] of any codes, [K, T] each, by the first embedder.

        Raises:
            EncoreError: no embedder was chosen.
        """

    @abstractmethod
    def derive(
        self,
        *,
        models: Mapping[Role, Backend] | None = None,
        clips: Mapping[ClipSet, Sequence[Clip]] | None = None,
        seed: int | None = None,
    ) -> Evaluation:
        """The same evaluation of other models, on other clips, or with another seed: of a quantised copy, with reworded
        captions.

        It shares all else that was given, and what is known of tracks; what it computes is its own.
        """

    @abstractmethod
    def cached(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returns, computed for the first caller with this key and shared with the later ones.

        Begin the key with your metric's name, and put all in it that the result depends on beside the evaluation.
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
        """What `make` computes of models on clips, by name: computed once, and found on disk by later evaluations.

        For what is costly and follows from the models' weights, the clips and the evaluation's seed and batch sizes;
        those, the versions of libraries and the code of Encore and of every plugin are seen to. In an evaluation that
        keeps nothing it is `once`.

        Args:
            key: strings, numbers, None and tuples of them: your metric's name first, then all else that the result
                depends on, such as a number of steps and the version of a library that Encore does not know of.
            models, clips: all that `make` reads, in an order that matters.
        """


class Metric(ABC):
    """One metric: reads an `Evaluation`, returns rows for every model and set it is about."""

    spec: ClassVar[MetricSpec]

    @abstractmethod
    def measure(self, evaluation: Evaluation) -> Iterable[Result]:
        """Rows of `metrics.json`. What can't be measured is a row with `why`, never left out."""
