"""Utility: unbiased MMD of a model's generations to base's, on the same captions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from encore import stats
from encore.api import Evaluation, Metric, Result
from encore.metrics.rows import given, no_generations, not_finite, unmeasured


class Mmd(Metric):
    """Squared maximum mean discrepancy, RBF kernel, unbiased also at small n; near 0, or below it, is no difference.

    The kernel's width is the median distance between base's generations, so that figures of several models compare.
    Item i of both samples has one caption and one noise: `stats.paired_mmd2` is unbiased for such pairs.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        if why := no_generations(evaluation):
            yield unmeasured("mmd", "unlearned", "retain", why, direction="lower")
            return
        assert evaluation.embedder is not None  # see above
        base = evaluation.embeddings("base", "retain")
        width, n = stats.median_bandwidth(base), len(base)
        details = {"embedder": evaluation.embedder.identity, "bandwidth": width}
        for model in given(evaluation, "unlearned", "gold"):
            broken = not_finite(evaluation, model, "retain")
            if broken:
                yield unmeasured("mmd", model, "retain", broken, direction="lower", details=details)
                continue
            if not width > 0:
                why = f"base's {n} generations do not differ from one another, so the kernel has no width"
                yield unmeasured("mmd", model, "retain", why, n=n, direction="lower", details=details)
                continue
            own = evaluation.embeddings(model, "retain")
            distance = partial(stats.paired_mmd2, bandwidth=width)
            low, high = stats.jackknife_interval(distance, own, base) or (None, None)
            yield Result(
                "mmd", model, "retain", distance(own, base), low, high, n=n, direction="lower",
                details=details,
            )  # fmt: skip
