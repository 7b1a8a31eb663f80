"""Utility: unbiased MMD of a model's generations to base's, on the same captions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from encore import stats
from encore.api import Evaluation, Result
from encore.metrics.heard import Distance, Floats
from encore.metrics.rows import unmeasured


class Mmd(Distance):
    """Squared maximum mean discrepancy, RBF kernel, unbiased also at small n; near 0, or below it, is no difference.

    `mmd` through the latents of the model's own codec, `mmd_NAME` through the embedder of that name.
    The kernel's width is the median distance between base's generations, so that figures of several models compare.
    Item i of both samples has one caption and one noise: `stats.paired_mmd2` is unbiased for such pairs.
    """

    metric = "mmd"

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
        width, n = stats.median_bandwidth(base), len(own)
        details = {**told, "bandwidth": width}
        if not width > 0 or n < 2:
            why = f"base's {len(base)} generations do not differ from one another, so the kernel has no width"
            return unmeasured(metric, model, self.clips, why, n=n, direction="lower", details=details)
        distance = partial(stats.paired_mmd2, bandwidth=width)
        low, high = stats.jackknife_interval(distance, own, other) or (None, None)
        return Result(
            metric, model, self.clips, distance(own, other), low, high, n=n, direction="lower", details=details
        )


class MmdHoldout(Mmd):
    """The same on holdout captions."""

    clips = "holdout"
