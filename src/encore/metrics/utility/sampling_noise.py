"""How far two generations of one model for one caption are apart: what a difference to base is to be read against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from encore.api import Evaluation, Metric, Result
from encore.metrics.rows import mean_row, not_finite, unmeasured
from encore.metrics.utility.clap_score import ClapScore
from encore.metrics.utility.embedding_distance import Samples, able, asked, over_draws, row_name
from encore.metrics.utility.mmd import Mmd
from encore.metrics.utility.tag_kl import kl


class SamplingNoise(Metric):
    """Base alone, on retain captions with another seed: `sampling_clap_score`, `sampling_tag_kl`, `sampling_mmd`.

    `sampling_clap_score` is base's `clap_score` with the second seed; `sampling_tag_kl` is the KL between the tags of
    base's generations with the first seed and with the second, as `tag_kl` takes it between base and another model, and
    `sampling_mmd` the same with `mmd`. The names of embedders follow as there.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        if broken := not_finite(evaluation, "base", "retain"):
            yield unmeasured("sampling_tag_kl", "base", "retain", broken)
            return
        second = evaluation.derive(
            models={"base": evaluation.backend("base")},
            clips={name: evaluation.clips[name] for name in ("forget", "retain")}, seed=evaluation.seed + 1,
        )  # fmt: skip
        for row in ClapScore().measure(second):
            if row.model == "base" or row.value is None:
                yield replace(row, metric=f"sampling_{row.metric}", model="base")
        embedders, absent = able(evaluation, "embed")
        for name, why in absent.items():
            yield unmeasured(f"sampling_{row_name('mmd', name)}", "base", "retain", why)
        for name in embedders:
            first, other = (one.embeddings("base", "retain", name) for one in (evaluation, second))
            tracks = [clip.track for clip in asked(evaluation, "retain")]
            told = {"embedder": evaluation.embedders[name].identity}
            metric = f"sampling_{row_name('mmd', name)}"
            yield Mmd().compared(evaluation, Samples(metric, "base", "retain", other, first, first, tracks, told))
        taggers, absent = able(evaluation, "tags")
        for name, why in absent.items():
            yield unmeasured(f"sampling_{row_name('tag_kl', name)}", "base", "retain", why)
        for name in taggers:
            tags, others = (one.tags("base", "retain", name) for one in (evaluation, second))
            assert tags is not None  # an embedder with tags
            assert others is not None
            apart = over_draws(asked(evaluation, "retain"), kl(tags, others).tolist())
            yield mean_row(
                f"sampling_{row_name('tag_kl', name)}", "base", "retain", apart, evaluation, unit="nats",
                direction="lower", details={"embedder": evaluation.embedders[name].identity},
            )  # fmt: skip
