"""Model-free baselines: membership scores that use no model. If they work, the membership AUCs are confounded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from encore import stats
from encore.api import Clip, Evaluation, Metric, Result
from encore.metrics.privacy.membership import negated_zlib_size
from encore.metrics.rows import by_track, unmeasured

WARNING = 0.1  # distance of an AUC from .5
LEVEL = 0.05  # of p, after Holm over all scores
SMOOTHING = 0.5  # added to the count of each word or code
PERMUTATIONS = 199  # of the labels, for the p of a learned score

Floats = NDArray[np.float64]
Counts = Mapping[str, Counter[object]]  # track id -> count of each item


class ModelFreeBaseline(Metric):
    """Membership inference without a model. If it separates the sets, membership AUCs may reflect the sets alone.

    Rows, from codes and captions only:

    - `membership_auc_baseline`: compressibility of a track's codes with zlib (more compressible means member).
    - `membership_auc_baseline_caption`: length of the caption (shorter means member).
    - `membership_auc_baseline_codes`, `membership_auc_baseline_words`: unigrams of codes, and of the caption's words. A
      track's score is the mean log-odds of its items under the unigrams of both sets. For each pair of a forget and a
      holdout track, the unigrams are estimated without both, and the AUC is the share of pairs in which the forget
      track scores higher. Leaving out only one would put chance below .5 (Airola et al., "An experimental comparison of
      cross-validation techniques for estimating the area under the ROC curve", 2011).

    `details` have p (two-sided by ranks; for the learned scores one-sided by permuted labels), and p after Holm's
    correction for the number of scores. For the first two, whose sign is arbitrary, an AUC outside .4 to .6 is a
    warning; for the learned ones only if p after Holm is below .05, since a learned score can fit by chance.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for score in baseline_scores(evaluation):
            metric = f"membership_auc_baseline{score.name}"
            if not score.placements:
                yield unmeasured(metric, "none", "forget", "the model has no tokens", unit="AUC")
                continue
            members, others = (len({clip.track for clip in evaluation.clips[name]}) for name in ("forget", "holdout"))
            low, high = stats.auc_interval(score.auc, members, others)
            yield Result(
                metric, "none", "forget", score.auc, low, high, n=members + others, unit="AUC",
                per_track=score.placements, note=score.warning,
                details={"forget": members, "holdout": others, "p": score.p, "p_holm": score.p_holm},
            )  # fmt: skip


@dataclass(frozen=True)
class BaselineScore:
    """A score of the baseline.

    Args:
        name: last part of the row's name.
        feature: description of what it uses.
        learned: whether it is estimated from the other tracks.
        placements: for each forget track the share of holdout tracks with a lower score; empty without tokens.
        p: p-value of the hypothesis that both sets have the same distribution.
        p_holm: p after Holm's correction.
    """

    name: str
    feature: str
    learned: bool
    placements: Mapping[str, float]
    p: float
    p_holm: float = 1.0

    @property
    def auc(self) -> float:
        return sum(self.placements.values()) / len(self.placements)

    @property
    def warning(self) -> str | None:
        """The warning if the score separates the two sets, else None."""
        if not self.placements or abs(self.auc - 0.5) <= WARNING:
            return None
        finding = f"AUC of the baseline {self.auc:.2f}, by {self.feature}"
        if self.p_holm < LEVEL:
            return f"forget and holdout differ without any model ({finding}): no membership AUC is reliable"
        return None if self.learned else f"{finding}, on few tracks: forget and holdout may differ without any model"


def baseline_warning(evaluation: Evaluation) -> str | None:
    """The warning of the most significant score, or None."""
    scores = sorted(baseline_scores(evaluation), key=lambda score: score.p_holm)
    return next((score.warning for score in scores if score.warning), None)


def baseline_scores(evaluation: Evaluation) -> list[BaselineScore]:
    """All scores, computed once."""
    return evaluation.cached("membership_auc_baseline", lambda: _scores(evaluation))


def _scores(evaluation: Evaluation) -> list[BaselineScore]:
    forget, holdout, seed = evaluation.clips["forget"], evaluation.clips["holdout"], evaluation.seed
    tokens = not any(clip.codes.is_floating_point() for clip in [*forget, *holdout])
    codes = (_codes(forget), _codes(holdout)) if tokens else ({}, {})
    scores = [
        _fixed("", "the compressibility of codes", negated_zlib_size(forget), negated_zlib_size(holdout)),
        _fixed("_caption", "the captions' length", _brevity(forget), _brevity(holdout)),
        _learned("_codes", "the frequency of codes", *codes, seed),
        _learned("_words", "the captions' words", _words(forget), _words(holdout), seed),
    ]
    measured = [score for score in scores if score.placements]
    adjusted = dict(zip(map(id, measured), stats.holm([score.p for score in measured]).tolist(), strict=True))
    return [replace(score, p_holm=adjusted.get(id(score), 1.0)) for score in scores]


def _fixed(name: str, feature: str, members: Mapping[str, float], others: Mapping[str, float]) -> BaselineScore:
    scores = list(members.values()), list(others.values())
    placements = dict(zip(members, stats.placements(*scores).tolist(), strict=True))
    return BaselineScore(name, feature, False, placements, stats.rank_test(*scores))


def _brevity(clips: Sequence[Clip]) -> dict[str, float]:
    return by_track(clips, [-float(len(clip.caption)) for clip in clips], [1.0] * len(clips))


# --------------------------------------------------------------------------------------------------- learned scores


def _codes(clips: Sequence[Clip]) -> Counts:
    """Count of each code of each codebook, per track."""
    counts: dict[str, Counter[object]] = {}
    for clip in clips:
        counter = counts.setdefault(clip.track, Counter())
        for k, codes in enumerate(clip.codes.tolist()):
            counter.update((k, code) for code in codes)
    return dict(sorted(counts.items()))


def _words(clips: Sequence[Clip]) -> Counts:
    captions = {clip.track: clip.caption for clip in clips}
    return {track: Counter(re.findall(r"\w+", caption.casefold())) for track, caption in sorted(captions.items())}


def _learned(name: str, feature: str, members: Counts, others: Counts, seed: int) -> BaselineScore:
    if not members:
        return BaselineScore(name, feature, True, {}, 1.0)
    tracks = [*members.values(), *others.values()]
    column = {item: i for i, item in enumerate(dict.fromkeys(item for track in tracks for item in track))}
    counts = np.zeros((len(tracks), len(column)))
    for row, track in zip(counts, tracks, strict=True):
        for item, count in track.items():
            row[column[item]] = count
    first = np.arange(len(tracks)) < len(members)
    wins = pairs_won(counts, first)
    rng, observed = np.random.default_rng(seed), wins.mean()
    permuted = (pairs_won(counts, rng.permutation(first)).mean() for _ in range(PERMUTATIONS))
    as_high = sum(int(mean >= observed - 1e-12) for mean in permuted)
    placements = dict(zip(members, wins.mean(1).tolist(), strict=True))
    return BaselineScore(name, feature, True, placements, (1 + as_high) / (1 + PERMUTATIONS))


def pairs_won(counts: Floats, first: NDArray[np.bool_]) -> Floats:
    """Whether the member of each pair of a member and another track has the higher log-odds.

    Args:
        counts: count of each item in each track, [N, V].
        first: which tracks are members, [N].

    Returns:
        1, 0, or 1/2 for a tie, [members, others]; a pair is left out of the unigrams that score it.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1.0)

    def under(chosen: NDArray[np.bool_]) -> Floats:
        """Mean log-likelihood of each track under a set's unigrams, leaving out each track of the set, [N, n]."""
        rest = counts[chosen].sum(0) - counts[chosen] + SMOOTHING
        return np.asarray(shares @ np.log(rest / rest.sum(1, keepdims=True)).T)

    members, others = under(first), under(~first)
    member_odds = np.diag(members[first])[:, None] - others[first]  # [members, others]
    other_odds = members[~first].T - np.diag(others[~first])[None]
    gap = member_odds - other_odds
    return np.where(np.abs(gap) < 1e-12, 0.5, (gap > 0).astype(float))
