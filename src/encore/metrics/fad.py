"""Utility: Fréchet audio distance of a model's generations to base's, on the same captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from encore import stats
from encore.api import Evaluation, Result
from encore.metrics.heard import Distance, Floats, first_windows, row_name
from encore.metrics.rows import given, not_finite, unmeasured
from encore.metrics.verbatim import MODELS


class Fad(Distance):
    """Fréchet distance between Gaussians fitted to the embeddings of two equally large sets of generations.

    `fad` through the latents of the model's own codec, `fad_NAME` through the embedder of that name. With n near the
    embedding's dimension the figure is mostly bias (two samples of one 128-dimensional Gaussian: 84 at
    n = 100, 0.4 at n = 20 000), so n < 2 · dim is refused unless the evaluation is told to
    `force`. The interval is a jackknife's.
    """

    metric = "fad"

    def compared(
        self,
        evaluation: Evaluation,
        metric: str,
        model: str,
        own: Floats,
        other: Floats,
        base: Floats,
        told: Mapping[str, object],
    ) -> Result:
        n, dim = own.shape
        details = {**told, "dim": dim}
        small = n < 2 * dim
        if n < 3 or (small and not evaluation.force):
            why = f"{n} generations in {dim} dimensions give mostly bias; it takes {max(2 * dim, 3)}, see mmd"
            return unmeasured(metric, model, self.clips, why, n=n, direction="lower", details=details)
        low, high = stats.jackknife_interval(stats.frechet_distance, own, other) or (None, None)
        return Result(
            metric, model, self.clips, stats.frechet_distance(own, other), low, high, n=n, direction="lower",
            note=f"{n} generations in {dim} dimensions: mostly bias" if small else None, details=details,
        )  # fmt: skip


class FadInf(Distance):
    """FAD∞: the same distance extrapolated to endless generations (`stats.frechet_inf`), its bias taken off.

    With n < 2 · dim it has nothing to go by, forced or not. It can be negative; near 0 is no difference. The interval
    is a jackknife's, and wide.
    """

    metric = "fad_inf"

    def compared(
        self,
        evaluation: Evaluation,
        metric: str,
        model: str,
        own: Floats,
        other: Floats,
        base: Floats,
        told: Mapping[str, object],
    ) -> Result:
        n, dim = own.shape
        details = {**told, "dim": dim}
        least = max(2 * dim, 6)  # a jackknife still leaves two rows a half
        if n < least:
            why = f"{n} generations in {dim} dimensions are too few to extrapolate from; it takes {least}, see mmd"
            return unmeasured(metric, model, self.clips, why, n=n, direction="lower", details=details)
        samples = own, other, stats.random_halves(n, seed=evaluation.seed)
        low, high = stats.jackknife_interval(stats.frechet_inf, *samples) or (None, None)
        return Result(
            metric, model, self.clips, stats.frechet_inf(*samples), low, high, n=n, direction="lower", details=details
        )


class FadHoldout(Fad):
    """The same on holdout captions: what a model plays where neither base nor it has a track to recall."""

    clips = "holdout"


class FadTrack(Fad):
    """`fad_track`: the same distance to the tracks themselves, as the codec plays them, whose captions were played.

    What No Encore (2025) calls FAD. A track is there once a draw, so that both samples are equally large.
    """

    metric = "fad_track"

    def _through(self, evaluation: Evaluation, name: str) -> Iterator[Result]:
        metric, told = row_name(self.metric, name), {"embedder": evaluation.embedders[name].identity}
        tracks = evaluation.embeddings("audio", self.clips, name)[first_windows(evaluation, self.clips)]
        for model in given(evaluation, *MODELS):
            if broken := not_finite(evaluation, model, self.clips):
                yield unmeasured(metric, model, self.clips, broken, direction="lower", details=told)
                continue
            own = evaluation.embeddings(model, self.clips, name)
            again = np.repeat(tracks, len(own) // len(tracks), 0)
            yield self.compared(evaluation, metric, model, own, again, tracks, told)


class FadTrackForget(FadTrack):
    """The same on forget captions: how near what is played for them is to the forgotten tracks."""

    clips = "forget"
