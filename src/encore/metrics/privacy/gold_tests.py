"""Two published tests against gold, beside KL: a Kolmogorov-Smirnov test of the NLLs, and PrivLeak."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from encore import stats
from encore.api import ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.privacy.membership import min_k, negated
from encore.metrics.rows import available_roles, not_finite, unmeasured

SETS: tuple[ClipSet, ...] = ("forget", "holdout")
PRIVLEAK_K = 0.4  # as in MUSE


def rows_against_gold(
    evaluation: Evaluation,
    metric: str,
    sets: Iterable[ClipSet],
    row: Callable[[Evaluation, Role], Result],
    **fields: Any,
) -> Iterator[Result]:
    """A row for each model that is compared with gold, or the reason: a likelihood of either is not finite."""
    models = available_roles(evaluation, "base", "unlearned", "gold2")
    if not models:
        yield unmeasured(metric, "unlearned", "forget", "there is no model to compare with gold", **fields)
    for model in models:
        pairs = itertools.product((model, "gold"), sets)
        reason = next(filter(None, (not_finite(evaluation, role, clips) for role, clips in pairs)), "")
        yield unmeasured(metric, model, "forget", reason, **fields) if reason else row(evaluation, model)


class GoldKs(Metric):
    """Exact two-sample Kolmogorov-Smirnov p-value of the forget tracks' NLLs, a model's against gold's.

    TOFU calls the p-value of such a test "forget quality" (Maini et al., arXiv 2401.06121, section 2.2.2; there of
    truth ratios). The test is two-sided: NLLs that are too low, too high or too uniform all lower the p-value. A high
    p-value proves nothing: n tracks per side can't detect a difference D below about 1.36 √(2/n), given in the note.
    The test assumes independent samples, but the tracks are the same: a shift of all tracks by less than their
    variance goes undetected. The note therefore has the p-value of Wilcoxon's signed-rank test of the pairs.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        return rows_against_gold(evaluation, "gold_ks", ("forget",), self._row, unit="p", direction="higher")

    def _row(self, evaluation: Evaluation, model: Role) -> Result:
        from scipy import stats as scipy_stats

        nll, gold = evaluation.nll(model, "forget"), evaluation.nll("gold", "forget")
        test = scipy_stats.ks_2samp(list(nll.values()), list(gold.values()), method="exact")
        gaps = [nll[track] - gold[track] for track in gold]
        paired = float(scipy_stats.wilcoxon(gaps).pvalue) if any(gaps) else 1.0
        detectable = min(1.0, 1.36 * math.sqrt(2 / len(nll)))  # significant at .05
        return Result(
            "gold_ks", model, "forget", float(test.pvalue), n=len(nll), unit="p", direction="higher",
            note=f"{len(nll)} tracks per side can hardly detect a D below {detectable:.2f}; "
            f"paired by track, Wilcoxon's p is {paired:.2g}",
            details={"D": float(test.statistic), "location": float(test.statistic_location), "wilcoxon_p": paired},
        )  # fmt: skip


class PrivLeak(Metric):
    """PrivLeak = (A_model - A_gold) / A_gold, A = 1 - AUC of Min-40 % membership, forget against holdout.

    After MUSE (Shi et al., arXiv 2407.06460, section 3.1), with its signs and share of tokens: about -1 for a model
    that still knows the tracks if gold's AUC is .5, 0 at gold, above 0 for a model that over-forgets. Without tokens
    the score is LOSS. The interval is that of the model's AUC (`stats.auc_interval`, of nonzero width also at an AUC
    of 1), with gold's AUC fixed.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        return rows_against_gold(evaluation, "privleak", SETS, self._row)

    def _row(self, evaluation: Evaluation, model: Role) -> Result:
        auc, gold = _auc(evaluation, model), _auc(evaluation, "gold")
        if gold == 1:
            why = "gold's AUC is 1: gold alone separates forget from holdout, and the denominator is 0"
            return unmeasured("privleak", model, "forget", why)
        forget, holdout = (len({clip.track for clip in evaluation.clips[clips]}) for clips in SETS)
        score = "mink" if evaluation.backend(model).has_tokens else "loss"
        value, high, low = ((gold - a) / (1 - gold) for a in (auc, *stats.auc_interval(auc, forget, holdout)))
        return Result(
            "privleak", model, "forget", value, low, high, n=forget + holdout,
            details={"score": score, "forget": forget, "holdout": holdout},
        )  # fmt: skip


def _auc(evaluation: Evaluation, role: Role) -> float:
    """AUC of a model's membership score."""
    tokens = evaluation.backend(role).has_tokens
    scores = [
        min_k(evaluation, role, clips, PRIVLEAK_K) if tokens else negated(evaluation.nll(role, clips)) for clips in SETS
    ]
    return stats.auc(*(list(tracks.values()) for tracks in scores))
