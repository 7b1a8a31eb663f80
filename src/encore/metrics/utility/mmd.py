"""Utility: unbiased MMD of a model's generations to base's, on the same captions."""

from __future__ import annotations

from functools import partial

from encore import stats
from encore.api import Evaluation, Result
from encore.metrics.utility.embedding_distance import Distance, Samples


class Mmd(Distance):
    """Squared maximum mean discrepancy with an RBF kernel, unbiased at small n; near or below 0 is no difference.

    `mmd` through the latents of the model's codec, `mmd_NAME` through the embedder of that name. The kernel's bandwidth
    is the median distance between base's generations, so that several models can be compared. Row i of both samples
    shares its caption and noise: `stats.paired_mmd2` is unbiased for such pairs.
    """

    metric = "mmd"

    def compare(self, evaluation: Evaluation, samples: Samples) -> Result:
        bandwidth = stats.median_bandwidth(samples.base)
        if not bandwidth > 0 or len(samples.embeddings) < 2:
            why = f"base's {len(samples.base)} generations do not differ, so the kernel has no bandwidth"
            return samples.unmeasured(why, bandwidth=bandwidth)
        return samples.row(partial(stats.paired_mmd2, bandwidth=bandwidth), bandwidth=bandwidth)


class MmdHoldout(Mmd):
    """`mmd` on holdout captions."""

    clips = "holdout"
