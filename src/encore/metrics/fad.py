"""Utility: Fréchet audio distance of a model's generations to base's, on the same captions."""

from __future__ import annotations

from collections.abc import Iterator

from encore import stats
from encore.api import Evaluation, Metric, Result
from encore.metrics.rows import given, no_generations, not_finite, unmeasured


class Fad(Metric):
    """Fréchet distance between Gaussians fitted to the embeddings of two equally large sets of generations.

    With n near the embedding's dimension the figure is mostly bias (two samples of one 128-dimensional Gaussian: 84 at
    n = 100, 0.4 at n = 20 000), so n < 2 · dim is refused unless the evaluation is told to
    `force`. The interval is a jackknife's.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        if why := no_generations(evaluation):
            yield unmeasured("fad", "unlearned", "retain", why, direction="lower")
            return
        assert evaluation.embedder is not None  # see above
        base = evaluation.embeddings("base", "retain")
        n, dim = base.shape
        details = {"embedder": evaluation.embedder.identity, "dim": dim}
        for model in given(evaluation, "unlearned", "gold"):
            broken = not_finite(evaluation, model, "retain")
            if broken:
                yield unmeasured("fad", model, "retain", broken, direction="lower", details=details)
                continue
            small = n < 2 * dim
            if n < 3 or (small and not evaluation.force):
                why = f"{n} generations in {dim} dimensions give mostly bias; it takes {max(2 * dim, 3)}, see mmd"
                yield unmeasured("fad", model, "retain", why, n=n, direction="lower", details=details)
                continue
            own = evaluation.embeddings(model, "retain")
            low, high = stats.jackknife_interval(stats.frechet_distance, own, base) or (None, None)
            yield Result(
                "fad", model, "retain", stats.frechet_distance(own, base), low, high, n=n, direction="lower",
                note=f"{n} generations in {dim} dimensions: mostly bias" if small else None, details=details,
            )  # fmt: skip
