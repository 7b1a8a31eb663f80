"""Utility: Fréchet audio distance of a model's generations to base's, on the same captions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from encore import stats
from encore.api import Evaluation, Result
from encore.metrics.memorization.verbatim import MODELS
from encore.metrics.rows import given
from encore.metrics.utility.embedding_distance import Distance, Samples, asked, first_windows


class Fad(Distance):
    """Fréchet distance between Gaussians fitted to the embeddings of two equally large sets of generations.

    `fad` through the latents of the model's own codec, `fad_NAME` through the embedder of that name. The figure is
    biased upward (two samples of one 128-dimensional Gaussian: 84 at n = 100, 0.4 at n = 20 000). So `details["bias"]`
    and the note have its distance to FAD∞ (`stats.frechet_inf`), and the interval is of the distance without the bias:
    FAD∞'s by jackknife, extended to the figure itself. With n < 2 · dim, n being the different rows of the sample that
    has fewer, there is mostly bias and no estimate of it: such a figure is refused unless the evaluation is told to
    `force`, and then has no interval.
    """

    metric = "fad"

    def compared(self, evaluation: Evaluation, samples: Samples) -> Result:
        n, dim = samples.distinct, samples.own.shape[1]
        small = n < 2 * dim
        if n < 3 or (small and not evaluation.force):
            why = f"{_few(samples)} in {dim} dimensions give mostly bias; it takes {max(2 * dim, 3)}, see mmd"
            return samples.unmeasured(why, dim=dim)
        distance = stats.frechet_distance(samples.own, samples.other)
        if small:
            note = f"{_few(samples)} in {dim} dimensions: mostly bias"
            return samples.figure(distance, None, note=note, dim=dim, bias=None)
        halves = stats.random_halves(len(samples.own), seed=evaluation.seed)
        unbiased = stats.frechet_inf(samples.own, samples.other, halves)
        interval = samples.interval(stats.frechet_inf, halves)
        if interval is not None:
            interval = min(interval[0], distance), max(interval[1], distance)
        note = (
            f"about {distance - unbiased:.2g} of it is bias of {_few(samples)} in {dim} dimensions; "
            "the interval is of the distance without the bias"
        )
        return samples.figure(distance, interval, note=note, dim=dim, bias=distance - unbiased)


class FadInf(Distance):
    """FAD∞: the same distance extrapolated to endless generations (`stats.frechet_inf`), its bias taken off.

    With n < 2 · dim it has nothing to go by, forced or not. It can be negative; near 0 is no difference. The interval
    is a jackknife's, and wide.
    """

    metric = "fad_inf"

    def compared(self, evaluation: Evaluation, samples: Samples) -> Result:
        n, dim = samples.own.shape
        least = max(2 * dim, 6)  # a jackknife still leaves two rows a half
        if samples.distinct < least:
            few = f"{_few(samples)} in {dim} dimensions"
            return samples.unmeasured(f"{few} are too few to extrapolate from; it takes {least}, see mmd", dim=dim)
        return samples.row(stats.frechet_inf, stats.random_halves(n, seed=evaluation.seed), dim=dim)


def _few(samples: Samples) -> str:
    """What there are few of: generations, of which more can be drawn, or tracks, of which not."""
    if samples.model == "none" or samples.distinct < len(samples.own):
        return f"{samples.distinct} different sounds a side (further draws add none)"
    return f"{len(samples.own)} generations"


class FadHoldout(Fad):
    """The same on holdout captions: what a model plays where neither base nor it has a track to recall."""

    clips = "holdout"


class FadTrack(Fad):
    """`fad_track`: the same distance to the tracks themselves, as the codec plays them, whose captions were played.

    What No Encore (2025) calls FAD. A track is there once a draw, so that both samples are equally large; towards how
    many there must be it counts once.
    """

    metric = "fad_track"

    def _through(self, evaluation: Evaluation, name: str) -> Iterator[Result]:
        tracks = evaluation.embeddings("audio", self.clips, name)[first_windows(evaluation, self.clips)]
        again = np.repeat(tracks, len(asked(evaluation, self.clips)) // len(tracks), 0)
        yield from self._models(evaluation, name, given(evaluation, *MODELS), again, tracks)


class FadTrackForget(FadTrack):
    """The same on forget captions: how near what is played for them is to the forgotten tracks."""

    clips = "forget"
