"""Differences between base's generations with two seeds: the noise level of the metrics that compare with base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from encore.api import Evaluation, Metric, Result
from encore.metrics.rows import mean_row, not_finite, unmeasured
from encore.metrics.utility.clap_score import ClapScore
from encore.metrics.utility.embedding_distance import (
    Samples,
    embedders_with,
    generation_clips,
    mean_per_track,
    row_name,
)
from encore.metrics.utility.mmd import Mmd
from encore.metrics.utility.tag_kl import kl


class SamplingNoise(Metric):
    """Base on retain captions with a second seed: `sampling_clap_score`, `sampling_tag_kl`, `sampling_mmd`.

    `sampling_clap_score` is base's `clap_score` with the second seed. `sampling_tag_kl` and `sampling_mmd` are `tag_kl`
    and `mmd` between base's generations with both seeds. Names of embedders are appended as in those metrics.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        if reason := not_finite(evaluation, "base", "retain"):
            yield unmeasured("sampling_tag_kl", "base", "retain", reason)
            return
        second = evaluation.derive(
            models={"base": evaluation.backend("base")},
            clips={name: evaluation.clips[name] for name in ("forget", "retain")}, seed=evaluation.seed + 1,
        )  # fmt: skip
        for row in ClapScore().measure(second):
            if row.model == "base" or row.value is None:
                yield replace(row, metric=f"sampling_{row.metric}", model="base")
        embedders, absent = embedders_with(evaluation, "embed")
        for name, why in absent.items():
            yield unmeasured(f"sampling_{row_name('mmd', name)}", "base", "retain", why)
        for name in embedders:
            first, other = (run.embeddings("base", "retain", name) for run in (evaluation, second))
            tracks = [clip.track for clip in generation_clips(evaluation, "retain")]
            details = {"embedder": evaluation.embedders[name].identity}
            metric = f"sampling_{row_name('mmd', name)}"
            yield Mmd().compare(evaluation, Samples(metric, "base", "retain", other, first, first, tracks, details))
        taggers, absent = embedders_with(evaluation, "tags")
        for name, why in absent.items():
            yield unmeasured(f"sampling_{row_name('tag_kl', name)}", "base", "retain", why)
        for name in taggers:
            tags, others = (run.tags("base", "retain", name) for run in (evaluation, second))
            assert tags is not None  # see `embedders_with`
            assert others is not None
            kls = mean_per_track(generation_clips(evaluation, "retain"), kl(tags, others).tolist())
            yield mean_row(
                f"sampling_{row_name('tag_kl', name)}", "base", "retain", kls, evaluation, unit="nats",
                direction="lower", details={"embedder": evaluation.embedders[name].identity},
            )  # fmt: skip
