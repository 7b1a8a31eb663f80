"""Utility: unbiased MMD of a model's generations to base's, on the same captions."""

from __future__ import annotations

from functools import partial

from encore import stats
from encore.api import Evaluation, Result
from encore.metrics.utility.embedding_distance import Distance, Samples


class Mmd(Distance):
    """Squared maximum mean discrepancy, RBF kernel, unbiased also at small n; near 0, or below it, is no difference.

    `mmd` through the latents of the model's own codec, `mmd_NAME` through the embedder of that name.
    The kernel's width is the median distance between base's generations, so that figures of several models compare.
    Item i of both samples has one caption and one noise: `stats.paired_mmd2` is unbiased for such pairs.
    """

    metric = "mmd"

    def compared(self, evaluation: Evaluation, samples: Samples) -> Result:
        width = stats.median_bandwidth(samples.base)
        if not width > 0 or len(samples.own) < 2:
            why = f"base's {len(samples.base)} generations do not differ from one another, so the kernel has no width"
            return samples.unmeasured(why, bandwidth=width)
        return samples.row(partial(stats.paired_mmd2, bandwidth=width), bandwidth=width)


class MmdHoldout(Mmd):
    """The same on holdout captions."""

    clips = "holdout"
