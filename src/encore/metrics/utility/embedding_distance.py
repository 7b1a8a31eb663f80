"""Helpers of the embedder-based metrics, and the base class of the embedding distances."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from encore import plugins, stats
from encore.api import Clip, ClipSet, Embedder, Evaluation, Metric, Result, Role
from encore.metrics.rows import available_roles, by_track, not_finite, unmeasured

Floats = NDArray[np.float64]
Ability = Literal["embed", "embed_text", "tags"]
Direction = Literal["gold", "lower", "higher"]


def row_name(metric: str, embedder: str) -> str:
    """`fad` through the latents of the model's codec, `fad_clap_tiny` and `clap_score_tiny` through `clap-tiny`."""
    if embedder in ("", "latents"):
        return metric
    name = embedder.replace("-", "_")
    first = metric.split("_")[0]
    words = [word for i, word in enumerate(name.split("_")) if i or word != first]
    return "_".join([metric, *words])


def better_direction(clips: ClipSet, otherwise: Direction) -> Direction:
    """The direction that is better on a set; on forget closest to gold, as similarity to the tracks may be recall."""
    return "gold" if clips == "forget" else otherwise


def embedders_with(evaluation: Evaluation, ability: Ability) -> tuple[list[str], dict[str, str]]:
    """Names of the opened embedders with an ability, and those not opened, by name, with the reason."""

    def has(target: type[Embedder]) -> bool:
        return ability == "embed" or getattr(target, ability) is not getattr(Embedder, ability)

    opened = [name for name, embedder in evaluation.embedders.items() if has(type(embedder))]
    absent = {name: why for name, why in evaluation.unopened.items() if has(plugins.embedders().resolve(name))}
    return opened, absent


def generation_clips(evaluation: Evaluation, clips: ClipSet) -> list[Clip]:
    """The clip that each of `generations` belongs to: a track's first window, repeated per sample."""
    first = [evaluation.clips[clips][i] for i in first_window_indices(evaluation, clips)]
    model = next(role for role in evaluation.models)
    samples = len(evaluation.generations(model, clips)) // len(first)
    return [clip for clip in first for _ in range(samples)]


def first_window_indices(evaluation: Evaluation, clips: ClipSet) -> list[int]:
    """Index of each track's first clip in the set, in the order of track ids."""
    first = {clip.track: i for i, clip in reversed(list(enumerate(evaluation.clips[clips])))}
    return [first[track] for track in sorted(first)]


def mean_per_track(clips: Sequence[Clip], values: Sequence[float]) -> dict[str, float]:
    """Mean over each track's values, by track id."""
    return by_track(clips, values, [1.0] * len(clips))


def cosines(first: Floats, second: Floats) -> Floats:
    """Cosine similarity of rows [N, D] and rows [M, D], [N, M]; 0 for zero vectors."""
    a, b = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (first, second))
    return np.asarray(a @ b.T, dtype=np.float64)


@dataclass(frozen=True)
class Samples:
    """Two samples of embeddings, from which one row of a metric is computed.

    Args:
        metric: name of the row.
        clips: set of the row.
        embeddings: the sample, [n, D].
        reference: the sample it is compared with, [n, D]; row i belongs to row i of `embeddings`.
        base: embeddings that set the scale, [m, D].
        tracks: track id of each of the n rows.
        details: details of the row.
    """

    metric: str
    model: str
    clips: ClipSet
    embeddings: Floats
    reference: Floats
    base: Floats
    tracks: Sequence[str]
    details: Mapping[str, object]

    @property
    def better(self) -> Direction:
        return better_direction(self.clips, "lower")

    @property
    def distinct(self) -> int:
        """The lower of both samples' numbers of distinct rows: a repeated row adds no rank."""
        return min(len(np.unique(rows, axis=0)) for rows in (self.embeddings, self.reference))

    def row(self, distance: Callable[..., float], *more: NDArray[Any], **details: Any) -> Result:
        """The row of `distance(embeddings, reference, *more)`, with a jackknife interval over tracks."""
        value = distance(self.embeddings, self.reference, *more)
        return self.result(value, self.interval(distance, *more), **details)

    def interval(self, distance: Callable[..., float], *more: NDArray[Any]) -> stats.Interval | None:
        """The jackknife interval over tracks of a distance."""
        return stats.jackknife_interval(distance, self.embeddings, self.reference, *more, of=self.tracks)

    def result(
        self, value: float, interval: stats.Interval | None, *, note: str | None = None, **details: object
    ) -> Result:
        """The row of a value and its interval."""
        low, high = interval or (None, None)
        return Result(
            self.metric, self.model, self.clips, value, low, high, n=len(self.embeddings), direction=self.better,
            note=note, details={**self.details, **details},
        )  # fmt: skip

    def unmeasured(self, why: str, **details: object) -> Result:
        return unmeasured(
            self.metric, self.model, self.clips, why, n=len(self.embeddings), direction=self.better,
            details={**self.details, **details},
        )  # fmt: skip


class EmbedderMetric(Metric):
    """Base of the metrics that are measured through each embedder with an ability.

    Attributes:
        metric: first part of the rows' names.
        clips: set whose captions are generated for.
        ability: what an embedder must be able to do.
        otherwise: the better direction on all sets but forget.
        lacking: ends the message "none of the embedders …", if the rows need one; else there are no rows.
    """

    metric: str
    clips: ClipSet = "retain"
    ability: Ability = "embed"
    otherwise: Direction = "lower"
    lacking = ""

    @property
    def better(self) -> Direction:
        return better_direction(self.clips, self.otherwise)

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        opened, absent = embedders_with(evaluation, self.ability)
        if why := self.why_not(evaluation):
            yield unmeasured(self.metric, "unlearned", self.clips, why, direction=self.better)
            return
        for name in opened:
            yield from self._embedder_rows(evaluation, name)
        for name, why in absent.items():
            yield unmeasured(row_name(self.metric, name), "unlearned", self.clips, why, direction=self.better)
        if self.lacking and not opened and not absent:
            names = ", ".join(filter(None, evaluation.embedders))
            why = f"none of the embedders{f' ({names})' if names else ''} {self.lacking}"
            yield unmeasured(self.metric, "unlearned", self.clips, why, direction=self.better)

    def why_not(self, evaluation: Evaluation) -> str | None:
        """Why nothing can be measured; None if something can."""
        return no_generations(evaluation, self.clips)

    @abstractmethod
    def _embedder_rows(self, evaluation: Evaluation, name: str) -> Iterator[Result]:
        """The rows of one embedder."""


class Distance(EmbedderMetric):
    """Base of the distances between the embeddings of a model's and of base's generations for the same captions.

    The row of "none" is the distance between the tracks' files and their codec reconstructions. Generations pass
    through the same codec, so smaller distances are inaudible.
    """

    def _embedder_rows(self, evaluation: Evaluation, name: str) -> Iterator[Result]:
        base = evaluation.embeddings("base", self.clips, name)
        yield from self._model_rows(evaluation, name, available_roles(evaluation, "unlearned", "gold"), base, base)
        metric, details = row_name(self.metric, name), {"embedder": evaluation.embedders[name].identity}
        tracks = [clip.track for clip in evaluation.clips[self.clips]]
        recorded = decoded = evaluation.embeddings("audio", self.clips, name)
        if type(evaluation.embedders[name]).embed_codes is Embedder.embed_codes:  # the others embed codes directly
            if not evaluation.has_audio(self.clips):
                why = f"the files of the {self.clips} tracks are not available, so the codec's distance is unknown"
                yield unmeasured(metric, "none", self.clips, why, direction=self.better, details=details)
                return
            recorded = evaluation.embeddings("recorded", self.clips, name)
        yield self.compare(evaluation, Samples(metric, "none", self.clips, decoded, recorded, base, tracks, details))

    def _model_rows(
        self, evaluation: Evaluation, name: str, models: Sequence[Role], reference: Floats, base: Floats
    ) -> Iterator[Result]:
        """One row per model: its generations for the set's captions, compared with `reference`."""
        metric, details = row_name(self.metric, name), {"embedder": evaluation.embedders[name].identity}
        tracks = [clip.track for clip in generation_clips(evaluation, self.clips)]
        for model in models:
            if reason := not_finite(evaluation, model, self.clips):
                yield unmeasured(metric, model, self.clips, reason, direction=self.better, details=details)
                continue
            generated = evaluation.embeddings(model, self.clips, name)
            samples = Samples(metric, model, self.clips, generated, reference, base, tracks, details)
            yield self.compare(evaluation, samples)

    @abstractmethod
    def compare(self, evaluation: Evaluation, samples: Samples) -> Result:
        """The row of two samples."""


def no_generations(evaluation: Evaluation, clips: ClipSet) -> str | None:
    """Why generations for a set's captions can't be compared with base's; None if they can."""
    if "base" in evaluation.models and evaluation.clips.get(clips) and (evaluation.embedders or evaluation.unopened):
        return None if available_roles(evaluation, "unlearned", "gold") else "there is no model to compare with base"
    return f"it compares generations for {clips} captions with those of a base model, through an embedder"
