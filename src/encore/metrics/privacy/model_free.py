"""Can forget tracks be told from holdout tracks without any model? Then a membership AUC is about the sets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from encore import stats
from encore.api import Clip, Evaluation, Metric, Result
from encore.metrics.privacy.membership import compressed
from encore.metrics.rows import by_track, unmeasured

WARNING = 0.1  # distance of an AUC from .5
LEVEL = 0.05  # of p, after Holm over all scores
SMOOTHING = 0.5  # added to the count of each word or code
SHUFFLES = 199  # of the labels, for the p of a learned score

Floats = NDArray[np.float64]
Counts = Mapping[str, Counter[object]]  # track id -> how often it has each item


class Blind(Metric):
    """The membership test without any model. Where it tells the two sets apart, a membership AUC is about the sets.

    Rows, all of them scores that see codes and captions alone:

    - `membership_auc_blind`: how far zlib shrinks a track's codes (better compressed meaning member).
    - `membership_auc_blind_caption`: the caption's length (shorter meaning member).
    - `membership_auc_blind_codes`, `membership_auc_blind_words`: which codes, and which words of the caption, are more
      frequent in one set. A track is scored by the mean log-odds of its own under the unigrams of both sets, learned
      without it: of each pair of a forget and a holdout track, both are left out, and the AUC is the share of pairs in
      which the forget track scores higher. Leaving out one alone would put chance below .5 (Airola et al.,
      "An experimental comparison of cross-validation techniques for estimating the area under the ROC curve", 2011).

    `details` have p, two-sided by ranks or, of the learned scores, one-sided by shuffled labels, and p after Holm's
    correction for the number of scores. Of the first two, whose sign an attacker may turn, an AUC beyond .4 to .6 is a
    warning; of the learned ones only with p below .05 after Holm, since a learned score may be right by chance in more
    ways.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for score in blind_scores(evaluation):
            metric = f"membership_auc_blind{score.name}"
            if not score.placed:
                yield unmeasured(metric, "none", "forget", "the model has no tokens", unit="AUC")
                continue
            members, others = (len({clip.track for clip in evaluation.clips[name]}) for name in ("forget", "holdout"))
            low, high = stats.auc_interval(score.area, members, others)
            yield Result(
                metric, "none", "forget", score.area, low, high, n=members + others, unit="AUC",
                per_track=score.placed, note=score.warning,
                details={"forget": members, "holdout": others, "p": score.p, "p_holm": score.p_holm},
            )  # fmt: skip


@dataclass(frozen=True)
class BlindScore:
    """One score.

    Args:
        name: last part of the row's name. reads: what it looks at, in words. learned: from the other tracks.
        placed: of each forget track the share of holdout tracks that score lower; empty where there are no codes.
        p, p_holm: of the two sets being alike, and after Holm's correction.
    """

    name: str
    reads: str
    learned: bool
    placed: Mapping[str, float]
    p: float
    p_holm: float = 1.0

    @property
    def area(self) -> float:
        return sum(self.placed.values()) / len(self.placed)

    @property
    def warning(self) -> str | None:
        """What to say where the score tells the two sets apart; None where it does not."""
        if not self.placed or abs(self.area - 0.5) <= WARNING:
            return None
        told = f"blind AUC {self.area:.2f}, by {self.reads}"
        if self.p_holm < LEVEL:
            return f"forget and holdout differ without any model ({told}): no membership AUC is safe"
        return None if self.learned else f"{told}, on few tracks: forget and holdout may differ without any model"


def blind_warning(evaluation: Evaluation) -> str | None:
    """The warning of the surest score, None where there is none."""
    scores = sorted(blind_scores(evaluation), key=lambda score: score.p_holm)
    return next((score.warning for score in scores if score.warning), None)


def blind_scores(evaluation: Evaluation) -> list[BlindScore]:
    """All scores, computed once."""
    return evaluation.cached("membership_auc_blind", lambda: _scores(evaluation))


def _scores(evaluation: Evaluation) -> list[BlindScore]:
    forget, holdout, seed = evaluation.clips["forget"], evaluation.clips["holdout"], evaluation.seed
    tokens = not any(clip.codes.is_floating_point() for clip in [*forget, *holdout])
    codes = (_codes(forget), _codes(holdout)) if tokens else ({}, {})
    found = [
        _simple("", "how well codes compress", compressed(forget), compressed(holdout)),
        _simple("_caption", "the captions' length", _brevity(forget), _brevity(holdout)),
        _learned("_codes", "which codes there are", *codes, seed),
        _learned("_words", "the captions' words", _words(forget), _words(holdout), seed),
    ]
    measured = [score for score in found if score.placed]
    adjusted = dict(zip(map(id, measured), stats.holm([score.p for score in measured]).tolist(), strict=True))
    return [replace(score, p_holm=adjusted.get(id(score), 1.0)) for score in found]


def _simple(name: str, reads: str, members: Mapping[str, float], others: Mapping[str, float]) -> BlindScore:
    scores = list(members.values()), list(others.values())
    placed = dict(zip(members, stats.placements(*scores).tolist(), strict=True))
    return BlindScore(name, reads, False, placed, stats.rank_test(*scores))


def _brevity(clips: Sequence[Clip]) -> dict[str, float]:
    return by_track(clips, [-float(len(clip.caption)) for clip in clips], [1.0] * len(clips))


# --------------------------------------------------------------------------------------------------- learned scores


def _codes(clips: Sequence[Clip]) -> Counts:
    """How often each track has each code of each codebook."""
    found: dict[str, Counter[object]] = {}
    for clip in clips:
        own = found.setdefault(clip.track, Counter())
        for k, codes in enumerate(clip.codes.tolist()):
            own.update((k, code) for code in codes)
    return dict(sorted(found.items()))


def _words(clips: Sequence[Clip]) -> Counts:
    captions = {clip.track: clip.caption for clip in clips}
    return {track: Counter(re.findall(r"\w+", caption.casefold())) for track, caption in sorted(captions.items())}


def _learned(name: str, reads: str, members: Counts, others: Counts, seed: int) -> BlindScore:
    if not members:
        return BlindScore(name, reads, True, {}, 1.0)
    tracks = [*members.values(), *others.values()]
    column = {item: i for i, item in enumerate(dict.fromkeys(item for track in tracks for item in track))}
    counts = np.zeros((len(tracks), len(column)))
    for row, track in zip(counts, tracks, strict=True):
        for item, count in track.items():
            row[column[item]] = count
    first = np.arange(len(tracks)) < len(members)
    wins = pairs_won(counts, first)
    rng, observed = np.random.default_rng(seed), wins.mean()
    as_high = sum(int(pairs_won(counts, rng.permutation(first)).mean() >= observed - 1e-12) for _ in range(SHUFFLES))
    placed = dict(zip(members, wins.mean(1).tolist(), strict=True))
    return BlindScore(name, reads, True, placed, (1 + as_high) / (1 + SHUFFLES))


def pairs_won(counts: Floats, first: NDArray[np.bool_]) -> Floats:
    """Whether, of each pair of a track of the first set and one of the other, the first has the higher log-odds.

    Args:
        counts: how often each track has each item, [N, V]. first: which tracks are of the first set, [N].

    Returns:
        1, 0, or 1/2 for a tie, [members, others]; the unigrams of a pair's scores are of all tracks but the pair.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1.0)

    def under(chosen: NDArray[np.bool_]) -> Floats:
        """Mean log-likelihood of each track under the unigrams of a set without each of its own, [N, of the set]."""
        left = counts[chosen].sum(0) - counts[chosen] + SMOOTHING
        return np.asarray(shares @ np.log(left / left.sum(1, keepdims=True)).T)

    own, other = under(first), under(~first)
    of_member = np.diag(own[first])[:, None] - other[first]  # [members, others]
    of_other = own[~first].T - np.diag(other[~first])[None]
    gap = of_member - of_other
    return np.where(np.abs(gap) < 1e-12, 0.5, (gap > 0).astype(float))
