"""Two tests against gold that the literature reports, beside KL: is the model told from one that never heard them?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from encore import stats
from encore.api import ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.membership import min_k, negated
from encore.metrics.rows import given, not_finite, unmeasured

SETS: tuple[ClipSet, ...] = ("forget", "holdout")


class GoldKs(Metric):
    """Two-sample Kolmogorov-Smirnov p-value of the forget tracks' NLLs, a model's against gold's (exact).

    TOFU calls the p-value of such a test "forget quality" (Maini et al., arXiv 2401.06121, section 2.2.2; there of
    truth ratios). It has two sides: NLLs too low and too high both lower it, and so do NLLs that are all alike. A high
    p-value proves nothing: n tracks a side can't tell a difference D below about 1.36 √(2/n), which the note says.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        from scipy import stats as scipy_stats

        for model in given(evaluation, "base", "unlearned", "gold2"):
            broken = not_finite(evaluation, model, "forget") or not_finite(evaluation, "gold", "forget")
            if broken:
                yield unmeasured("gold_ks", model, "forget", broken, unit="p", direction="higher")
                continue
            own, gold = evaluation.nll(model, "forget"), evaluation.nll("gold", "forget")
            test = scipy_stats.ks_2samp(list(own.values()), list(gold.values()), method="exact")
            yield Result(
                "gold_ks", model, "forget", float(test.pvalue), n=len(own), unit="p", direction="higher",
                note=f"{len(own)} tracks a side can hardly tell a D below {_visible(len(own)):.2f}",
                details={"D": float(test.statistic), "location": float(test.statistic_location)},
            )  # fmt: skip


class PrivLeak(Metric):
    """PrivLeak = (A_model - A_gold) / A_gold, A = 1 - AUC of Min-K membership, forget against holdout.

    After MUSE (Shi et al., arXiv 2407.06460, section 3.1), with its signs: about -1 for a model that still knows the
    tracks where gold's AUC is .5, 0 at gold, above 0 for one that shuns them. Without tokens the score is LOSS. The
    interval is a bootstrap over forget and holdout tracks, the same for both models.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for model in given(evaluation, "base", "unlearned", "gold2"):
            roles: tuple[Role, ...] = (model, "gold")
            broken = [why for role in roles for clips in SETS if (why := not_finite(evaluation, role, clips))]
            if broken:
                yield unmeasured("privleak", model, "forget", broken[0])
                continue
            members, others = (_scores(evaluation, roles, clips) for clips in SETS)
            value = _leak(members, others)
            name = "mink" if evaluation.backend(model).has_tokens else "loss"
            if math.isnan(value):
                why = "gold's own AUC is 1: it tells forget from holdout by itself, and there is nothing to divide by"
                yield unmeasured("privleak", model, "forget", why)
                continue
            low, high = stats.two_sample_interval(_leak, members, others, seed=evaluation.seed) or (None, None)
            yield Result(
                "privleak", model, "forget", value, low, high, n=len(members) + len(others),
                details={"score": name, "forget": len(members), "holdout": len(others)},
            )  # fmt: skip


def _scores(evaluation: Evaluation, roles: tuple[Role, ...], clips: ClipSet) -> np.ndarray:
    """Membership scores [tracks, roles]."""
    columns = []
    for role in roles:
        tokens = evaluation.backend(role).has_tokens
        scores = min_k(evaluation, role, clips) if tokens else negated(evaluation.nll(role, clips))
        columns.append([scores[track] for track in sorted(scores)])
    return np.array(columns).T


def _leak(members: np.ndarray, others: np.ndarray) -> float:
    own, gold = (1 - stats.auc(members[:, i], others[:, i]) for i in (0, 1))
    return (own - gold) / gold if gold > 0 else math.nan


def _visible(n: int) -> float:
    """The D that is significant at .05 for two samples of n."""
    return min(1.0, 1.36 * math.sqrt(2 / n))
