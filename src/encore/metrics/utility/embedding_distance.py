"""What the metrics through embedders share: which embedder can what, the names of rows, what belongs to which track."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from encore import plugins, stats
from encore.api import Clip, ClipSet, Embedder, Evaluation, Metric, Result, Role
from encore.metrics.rows import given, not_finite, unmeasured

Floats = NDArray[np.float64]
Skill = Literal["embed", "embed_text", "tags"]
Direction = Literal["gold", "lower", "higher"]


def row_name(metric: str, embedder: str) -> str:
    """`fad` through the latents of the model's own codec, `fad_clap_tiny` and `clap_score_tiny` through `clap-tiny`."""
    if embedder in ("", "latents"):
        return metric
    name = embedder.replace("-", "_")
    first = metric.split("_")[0]
    words = [word for i, word in enumerate(name.split("_")) if i or word != first]
    return "_".join([metric, *words])


def toward(clips: ClipSet, otherwise: Direction) -> Direction:
    """Which way is better on a set: on forget nearest to gold, for what comes near the tracks may recall them."""
    return "gold" if clips == "forget" else otherwise


def able(evaluation: Evaluation, skill: Skill) -> tuple[list[str], dict[str, str]]:
    """Embedders that have a skill: those that were opened, by name; and why the others can't be asked, by name."""

    def has(target: type[Embedder]) -> bool:
        return skill == "embed" or getattr(target, skill) is not getattr(Embedder, skill)

    opened = [name for name, embedder in evaluation.embedders.items() if has(type(embedder))]
    absent = {name: why for name, why in evaluation.unopened.items() if has(plugins.embedders().resolve(name))}
    return opened, absent


def none_of(evaluation: Evaluation) -> str:
    """The embedders that are open, as the subject of a sentence that says what none of them can."""
    names = ", ".join(filter(None, evaluation.embedders))
    return f"none of the embedders ({names})" if names else "none of the embedders"


def asked(evaluation: Evaluation, clips: ClipSet) -> list[Clip]:
    """Whose caption was played, a clip for each of `generations`: a track's first window, once a draw."""
    first = [evaluation.clips[clips][i] for i in first_windows(evaluation, clips)]
    model = next(role for role in evaluation.models)
    draws = len(evaluation.generations(model, clips)) // len(first)
    return [clip for clip in first for _ in range(draws)]


def first_windows(evaluation: Evaluation, clips: ClipSet) -> list[int]:
    """Places of each track's first clip among the set's, in the order of track ids."""
    chosen = evaluation.clips[clips]
    first = {clip.track: i for i, clip in reversed(list(enumerate(chosen)))}
    return [first[track] for track in sorted(first)]


def over_draws(clips: Sequence[Clip], values: Sequence[float]) -> dict[str, float]:
    """Means over a track's draws, by track id."""
    found: dict[str, list[float]] = {}
    for clip, value in zip(clips, values, strict=True):
        found.setdefault(clip.track, []).append(float(value))
    return {track: sum(own) / len(own) for track, own in sorted(found.items())}


@dataclass(frozen=True)
class Samples:
    """Two samples of embeddings, which make one row of a metric.

    Args:
        metric, model, clips: as the row names them. own, other: [n, D]; their i-th rows belong together.
        base: what scales are taken from, [m, D]. tracks: whose each of the n rows is. told: of the row's details.

    Attributes:
        distinct: rows of the sample with fewer different ones: a repeated row (a track, once a draw) adds no rank.
    """

    metric: str
    model: str
    clips: ClipSet
    own: Floats
    other: Floats
    base: Floats
    tracks: Sequence[str]
    told: Mapping[str, object]

    @property
    def better(self) -> Direction:
        return toward(self.clips, "lower")

    @property
    def distinct(self) -> int:
        return min(len(np.unique(rows, axis=0)) for rows in (self.own, self.other))

    def row(self, distance: Callable[..., float], *more: NDArray[Any], **details: Any) -> Result:
        """The row of a distance of `own`, `other` and what `more` it takes, with a jackknife interval over tracks."""
        return self.figure(distance(self.own, self.other, *more), self.interval(distance, *more), **details)

    def interval(self, distance: Callable[..., float], *more: NDArray[Any]) -> stats.Interval | None:
        """The jackknife interval over tracks of a distance."""
        return stats.jackknife_interval(distance, self.own, self.other, *more, of=self.tracks)

    def figure(
        self, value: float, interval: stats.Interval | None, *, note: str | None = None, **details: object
    ) -> Result:
        """The row of a figure that is known."""
        low, high = interval or (None, None)
        return Result(
            self.metric, self.model, self.clips, value, low, high, n=len(self.own), direction=self.better, note=note,
            details={**self.told, **details},
        )  # fmt: skip

    def unmeasured(self, why: str, **details: object) -> Result:
        return unmeasured(
            self.metric, self.model, self.clips, why, n=len(self.own), direction=self.better,
            details={**self.told, **details},
        )  # fmt: skip


class Distance(Metric):
    """Base of the distances between two samples of embeddings: a model's plays and base's, of the same captions.

    The row of "none" has no model in it: it is the distance between the tracks and what the codec makes of them. What a
    model plays comes through the codec, so less than that is not heard as a difference.
    """

    metric: str
    clips: ClipSet = "retain"

    @property
    def better(self) -> Direction:
        return toward(self.clips, "lower")

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        opened, absent = able(evaluation, "embed")
        if why := no_generations(evaluation, self.clips):
            yield unmeasured(self.metric, "unlearned", self.clips, why, direction=self.better)
            return
        for name in opened:
            yield from self._through(evaluation, name)
        for name, why in absent.items():
            metric = row_name(self.metric, name)
            yield unmeasured(metric, "unlearned", self.clips, why, direction=self.better)

    def _through(self, evaluation: Evaluation, name: str) -> Iterator[Result]:
        base = evaluation.embeddings("base", self.clips, name)
        yield from self._models(evaluation, name, given(evaluation, "unlearned", "gold"), base, base)
        metric, told = row_name(self.metric, name), {"embedder": evaluation.embedders[name].identity}
        tracks = [clip.track for clip in evaluation.clips[self.clips]]
        recorded = played = evaluation.embeddings("audio", self.clips, name)
        if type(evaluation.embedders[name]).embed_codes is Embedder.embed_codes:  # to the others, a track is its codes
            if not evaluation.has_audio(self.clips):
                why = f"the files of the {self.clips} tracks are not at hand, so the codec's own distance is unknown"
                yield unmeasured(metric, "none", self.clips, why, direction=self.better, details=told)
                return
            recorded = evaluation.embeddings("recorded", self.clips, name)
        yield self.compared(evaluation, Samples(metric, "none", self.clips, played, recorded, base, tracks, told))

    def _models(
        self, evaluation: Evaluation, name: str, models: Sequence[Role], other: Floats, base: Floats
    ) -> Iterator[Result]:
        """A row a model: what it plays for the set's captions, against `other`."""
        metric, told = row_name(self.metric, name), {"embedder": evaluation.embedders[name].identity}
        tracks = [clip.track for clip in asked(evaluation, self.clips)]
        for model in models:
            if broken := not_finite(evaluation, model, self.clips):
                yield unmeasured(metric, model, self.clips, broken, direction=self.better, details=told)
                continue
            own = evaluation.embeddings(model, self.clips, name)
            yield self.compared(evaluation, Samples(metric, model, self.clips, own, other, base, tracks, told))

    @abstractmethod
    def compared(self, evaluation: Evaluation, samples: Samples) -> Result:
        """The row of two samples."""


def no_generations(evaluation: Evaluation, clips: ClipSet) -> str | None:
    """Why generations on a set's captions can't be compared with base's; None where they can."""
    if "base" in evaluation.models and evaluation.clips.get(clips) and (evaluation.embedders or evaluation.unopened):
        return None if given(evaluation, "unlearned", "gold") else "there is no model to compare with base"
    return f"it compares generations on {clips} captions with those of a base model, through an embedder"
