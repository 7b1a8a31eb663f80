"""Utility: Fréchet audio distance of a model's generations to base's, on the same captions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from encore import stats
from encore.api import Evaluation, Result
from encore.metrics.memorization.verbatim import MODELS
from encore.metrics.rows import available_roles
from encore.metrics.utility.embedding_distance import Distance, Samples, first_window_indices, generation_clips


class Fad(Distance):
    """Fréchet distance between Gaussians fitted to the embeddings of two equally large sets of generations.

    `fad` through the latents of the model's codec, `fad_NAME` through the embedder of that name. The distance is
    biased upward (two samples of one 128-dimensional Gaussian: 84 at n = 100, 0.4 at n = 20 000). `details["bias"]`
    and the note have its difference to FAD∞ (`stats.frechet_inf`). The interval is FAD∞'s jackknife interval, extended
    to include the distance. With n < 2 · dim, n being the lower number of distinct rows, the distance is mostly bias,
    which can't be estimated: it is not measured unless the evaluation has `force`, and then has no interval.
    """

    metric = "fad"

    def compare(self, evaluation: Evaluation, samples: Samples) -> Result:
        n, dim = samples.distinct, samples.embeddings.shape[1]
        small = n < 2 * dim
        if n < 3 or (small and not evaluation.force):
            why = f"{_count(samples)} in {dim} dimensions give mostly bias; at least {max(2 * dim, 3)} needed, see mmd"
            return samples.unmeasured(why, dim=dim)
        distance = stats.frechet_distance(samples.embeddings, samples.reference)
        if small:
            note = f"{_count(samples)} in {dim} dimensions: mostly bias"
            return samples.result(distance, None, note=note, dim=dim, bias=None)
        halves = stats.random_halves(len(samples.embeddings), seed=evaluation.seed)
        unbiased = stats.frechet_inf(samples.embeddings, samples.reference, halves)
        interval = samples.interval(stats.frechet_inf, halves)
        if interval is not None:
            interval = min(interval[0], distance), max(interval[1], distance)
        note = (
            f"about {distance - unbiased:.2g} of it is bias of {_count(samples)} in {dim} dimensions; "
            "the interval is of the distance without the bias"
        )
        return samples.result(distance, interval, note=note, dim=dim, bias=distance - unbiased)


class FadInf(Distance):
    """FAD∞: FAD extrapolated to an infinite number of generations (`stats.frechet_inf`), without bias.

    Not measured with n < 2 · dim, with or without `force`. It can be negative; near 0 is no difference. The jackknife
    interval is wide.
    """

    metric = "fad_inf"

    def compare(self, evaluation: Evaluation, samples: Samples) -> Result:
        n, dim = samples.embeddings.shape
        least = max(2 * dim, 6)  # leaves two rows per half in the jackknife
        if samples.distinct < least:
            count = f"{_count(samples)} in {dim} dimensions"
            return samples.unmeasured(f"{count} are too few to extrapolate; at least {least} needed, see mmd", dim=dim)
        return samples.row(stats.frechet_inf, stats.random_halves(n, seed=evaluation.seed), dim=dim)


def _count(samples: Samples) -> str:
    """The number of generations, or of distinct sounds where further samples add none."""
    if samples.model == "none" or samples.distinct < len(samples.embeddings):
        return f"{samples.distinct} distinct sounds per side (more samples add none)"
    return f"{len(samples.embeddings)} generations"


class FadHoldout(Fad):
    """`fad` on holdout captions, where neither model has a track to recall."""

    clips = "holdout"


class FadTrack(Fad):
    """`fad_track`: FAD to the decoded codes of the tracks whose captions are generated for.

    No Encore (2025) calls this FAD. Each track is repeated per sample, so that both samples are equally large; the
    required number counts distinct tracks.
    """

    metric = "fad_track"

    def _embedder_rows(self, evaluation: Evaluation, name: str) -> Iterator[Result]:
        tracks = evaluation.embeddings("audio", self.clips, name)[first_window_indices(evaluation, self.clips)]
        repeated = np.repeat(tracks, len(generation_clips(evaluation, self.clips)) // len(tracks), 0)
        yield from self._model_rows(evaluation, name, available_roles(evaluation, *MODELS), repeated, tracks)


class FadTrackForget(FadTrack):
    """`fad_track` on forget captions."""

    clips = "forget"
