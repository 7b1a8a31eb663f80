"""Two tests against gold that the literature reports, beside KL: is the model told from one that never heard them?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from encore import stats
from encore.api import ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.privacy.membership import min_k, negated
from encore.metrics.rows import given, not_finite, unmeasured

SETS: tuple[ClipSet, ...] = ("forget", "holdout")
PRIVLEAK_K = 0.4  # as in MUSE

ALONE = "there is no model to compare with gold"


class GoldKs(Metric):
    """Two-sample Kolmogorov-Smirnov p-value of the forget tracks' NLLs, a model's against gold's (exact).

    TOFU calls the p-value of such a test "forget quality" (Maini et al., arXiv 2401.06121, section 2.2.2; there of
    truth ratios). It has two sides: NLLs too low and too high both lower it, and so do NLLs that are all alike. A high
    p-value proves nothing: n tracks a side can't tell a difference D below about 1.36 √(2/n), which the note says. It
    takes the two sets of NLLs for independent, and they are of the same tracks: a shift that all tracks share is
    smaller than their spread and goes unseen. The note has what Wilcoxon's signed-rank test says of the pairs.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        from scipy import stats as scipy_stats

        models = given(evaluation, "base", "unlearned", "gold2")
        if not models:
            yield unmeasured("gold_ks", "unlearned", "forget", ALONE, unit="p", direction="higher")
        for model in models:
            broken = not_finite(evaluation, model, "forget") or not_finite(evaluation, "gold", "forget")
            if broken:
                yield unmeasured("gold_ks", model, "forget", broken, unit="p", direction="higher")
                continue
            own, gold = evaluation.nll(model, "forget"), evaluation.nll("gold", "forget")
            test = scipy_stats.ks_2samp(list(own.values()), list(gold.values()), method="exact")
            gaps = [own[track] - gold[track] for track in gold]
            paired = float(scipy_stats.wilcoxon(gaps).pvalue) if any(gaps) else 1.0
            yield Result(
                "gold_ks", model, "forget", float(test.pvalue), n=len(own), unit="p", direction="higher",
                note=f"{len(own)} tracks a side can hardly tell a D below {_visible(len(own)):.2f}; "
                f"track by track, Wilcoxon's p is {paired:.2g}",
                details={
                    "D": float(test.statistic), "location": float(test.statistic_location), "wilcoxon_p": paired,
                },
            )  # fmt: skip


class PrivLeak(Metric):
    """PrivLeak = (A_model - A_gold) / A_gold, A = 1 - AUC of Min-40 % membership, forget against holdout.

    After MUSE (Shi et al., arXiv 2407.06460, section 3.1), with its signs and its share of tokens: about -1 for a model
    that still knows the tracks where gold's AUC is .5, 0 at gold, above 0 for one that over-forgets them. Without
    tokens the score is LOSS. The interval is that of the model's AUC (`stats.auc_interval`, which has width at an AUC
    of 1 too), gold's taken as it is.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        models = given(evaluation, "base", "unlearned", "gold2")
        if not models:
            yield unmeasured("privleak", "unlearned", "forget", ALONE)
        for model in models:
            roles: tuple[Role, ...] = (model, "gold")
            broken = [why for role in roles for clips in SETS if (why := not_finite(evaluation, role, clips))]
            if broken:
                yield unmeasured("privleak", model, "forget", broken[0])
                continue
            area, gold = (_area(evaluation, role) for role in roles)
            forget, holdout = (len({clip.track for clip in evaluation.clips[clips]}) for clips in SETS)
            name = "mink" if evaluation.backend(model).has_tokens else "loss"
            if gold == 1:
                why = "gold's own AUC is 1: it tells forget from holdout by itself, and there is nothing to divide by"
                yield unmeasured("privleak", model, "forget", why)
                continue
            low, high = stats.auc_interval(area, forget, holdout)
            yield Result(
                "privleak", model, "forget", _leak(area, gold), _leak(high, gold), _leak(low, gold), n=forget + holdout,
                details={"score": name, "forget": forget, "holdout": holdout},
            )  # fmt: skip


def _area(evaluation: Evaluation, role: Role) -> float:
    """AUC of a model's membership score."""
    tokens = evaluation.backend(role).has_tokens
    scores = [
        min_k(evaluation, role, clips, PRIVLEAK_K) if tokens else negated(evaluation.nll(role, clips)) for clips in SETS
    ]
    return stats.auc(*(list(of_set.values()) for of_set in scores))


def _leak(area: float, gold: float) -> float:
    """PrivLeak of two AUCs, gold's below 1."""
    return (gold - area) / (1 - gold)


def _visible(n: int) -> float:
    """The D that is significant at .05 for two samples of n."""
    return min(1.0, 1.36 * math.sqrt(2 / n))
