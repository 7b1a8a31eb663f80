"""Relative audit: are generations for the forgotten captions nearer to gold's or to base's?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from encore import stats
from encore.api import Evaluation, Metric, Result, Role
from encore.metrics.memorization.generations import caption_generations
from encore.metrics.rows import available_roles, mean_row, not_finite, unmeasured

SAMPLED = "sample"  # first word of the variants that are sampled for a track's own caption


class RelativeAudit(Metric):
    """MMD²(model, gold) - MMD²(model, base) of generations for the forget captions; above 0 is nearer to base.

    A two-sample test of an unlearned model against gold rejects honest retraining too: gold2, trained in the same way
    from another seed, generates other music than gold, and enough samples show it. What is asked of unlearning is that
    the model be as good as retrained, so the test is relative: H0 is D(model, gold) ≤ D(model, base), from three
    samples (Ribero, Schrab and Gretton, "Regularized f-Divergence Kernel Tests", arXiv 2601.19755, AISTATS 2026; with
    MMD after Bounliphone et al., "A Test of Relative Similarity For Model Selection in Generative Models", arXiv
    1511.04581). `details["p"]` is that of H0, by flipping the signs of the tracks' differences; below .05 H0 is
    rejected.

    D is the mean over tracks of the squared MMD between two models' generations for the track's caption, since a
    memorised track shows under its caption, and in a pool of all captions hardly. The kernel is an RBF on embeddings
    of the first embedder, its width the median distance between base's generations. The samples are the three per
    caption of `similarity`, with the same noise for every model, so the unbiased paired form is used
    (`stats.paired_mmd2`). `per_track` is a track's difference. `details` have the mean distances to gold and to base.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        models = available_roles(evaluation, "base", "unlearned", "gold", "gold2")
        reasons = {model: not_finite(evaluation, model, "forget") for model in models}
        for model in models:
            if reason := reasons[model] or reasons["base"] or reasons["gold"]:
                yield unmeasured("relative_audit", model, "forget", reason)
            else:
                yield _row(evaluation, model)


def _row(evaluation: Evaluation, model: Role) -> Result:
    model_samples, base, gold = (_embeddings(evaluation, role) for role in (model, "base", "gold"))  # type: ignore[arg-type]
    width = stats.median_bandwidth(np.concatenate(list(base.values())))
    if not width > 0:
        return unmeasured("relative_audit", model, "forget", "base's generations do not differ")
    to_gold, to_base = (
        {track: stats.paired_mmd2(rows, other[track], width) for track, rows in model_samples.items()}
        for other in (gold, base)
    )
    differences = {track: to_gold[track] - to_base[track] for track in to_gold}
    identity = evaluation.embedder.identity if evaluation.embedder else ""
    return mean_row(
        "relative_audit", model, "forget", differences, evaluation, direction="lower",
        details={
            "p": _p(list(differences.values()), evaluation.seed), "bandwidth": width, "embedder": identity,
            "to_gold": sum(to_gold.values()) / len(to_gold), "to_base": sum(to_base.values()) / len(to_base),
        },
    )  # fmt: skip


def _p(differences: Sequence[float], seed: int) -> float:
    """One-sided p of a mean of at most 0."""
    two_sided = float(stats.max_t_test([differences], seed=seed)[0])
    return two_sided / 2 if sum(differences) > 0 else 1 - two_sided / 2


def _embeddings(evaluation: Evaluation, model: Role) -> Mapping[str, np.ndarray]:
    """Track -> embeddings [samples, D] of what is sampled for its caption."""

    def make() -> dict[str, np.ndarray]:
        sampled = [one for one in caption_generations(evaluation, model, "forget") if one.variant.startswith(SAMPLED)]
        vectors = evaluation.embed([one.codes for one in sampled])
        tracks = sorted({one.track for one in sampled})
        return {track: vectors[[one.track == track for one in sampled]] for track in tracks}

    return evaluation.cached(("relative_audit", model), make)
