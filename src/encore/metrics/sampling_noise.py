"""How far two generations of one model for one caption are apart: what a difference to base is to be read against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from encore.api import Evaluation, Metric, Result
from encore.metrics.clap_score import ClapScore
from encore.metrics.heard import able, asked, over_draws, row_name
from encore.metrics.rows import mean_row, not_finite, unmeasured
from encore.metrics.tag_kl import kl


class SamplingNoise(Metric):
    """Base on retain captions with another seed: rows `sampling_clap_score` and `sampling_tag_kl`, of base alone.

    `sampling_clap_score` is base's `clap_score` with the second seed; `sampling_tag_kl` is the KL between the tags of
    base's generations with the first seed and with the second, as `tag_kl` takes it between base and another model.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        if broken := not_finite(evaluation, "base", "retain"):
            yield unmeasured("sampling_tag_kl", "base", "retain", broken)
            return
        second = evaluation.other(
            models={"base": evaluation.backend("base")},
            clips={name: evaluation.clips[name] for name in ("forget", "retain")}, seed=evaluation.seed + 1,
        )  # fmt: skip
        for row in ClapScore().measure(second):
            if row.model == "base" or row.value is None:
                yield replace(row, metric=f"sampling_{row.metric}", model="base")
        taggers, absent = able(evaluation, "tags")
        for name, why in absent.items():
            yield unmeasured(f"sampling_{row_name('tag_kl', name)}", "base", "retain", why)
        for name in taggers:
            first, other = (one.tags("base", "retain", name) for one in (evaluation, second))
            assert first is not None  # an embedder with tags
            assert other is not None
            tracks = over_draws(asked(evaluation, "retain"), kl(first, other).tolist())
            yield mean_row(
                f"sampling_{row_name('tag_kl', name)}", "base", "retain", tracks, evaluation, unit="nats",
                direction="lower", details={"embedder": evaluation.embedders[name].identity},
            )  # fmt: skip
