"""Dataset inference: one p-value for a whole list of tracks, from all membership scores together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from encore import stats
from encore.api import ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.privacy.membership import MODELS
from encore.metrics.privacy.membership_attacks import ATTACKS
from encore.metrics.privacy.model_free import baseline_warning
from encore.metrics.rows import available_roles, not_finite, unmeasured

LEAST = 3  # tracks of each set
NEEDS_REFERENCE = ("reference",)  # scores that read another model: an auditor of one model has none


class DatasetInference(Metric):
    """p-value that the list is no different from held-out music to the model, from all membership scores together.

    A single track's membership is hard to show, a collection's is not (Maini et al., "LLM Dataset Inference", arXiv
    2406.06443; for audio models "Membership and Dataset Inference Attacks on Large Audio Generative Models", arXiv
    2512.09654). The scores are those of `membership_attacks` that need the model alone: LOSS, Min-K, ZLib, Min-K++,
    GradNorm and the caption's contrast; without tokens LOSS, ZLib and GradNorm. A track's evidence is their mean, each
    standardised over both sets; p is the two-sided Mann-Whitney p-value of the evidence of forget and holdout tracks,
    exact up to 100 of each. Two-sided, since over-unlearning also reveals membership.

    The papers learn the weights of the scores on half of the tracks and run a t-test on the others, with hundreds of
    tracks. Here the weights are equal: those learned on a few tracks are noise (on embedded gold, a shift of the
    caption's contrast that equal weights detect from .25 nats on takes .8 with a linear discriminant). Where each score
    is a little off in the same direction, this finds it and `membership_p`, which pays for the number of scores, does
    not. `per_track` is the share of holdout tracks with less evidence, and `details["auc"]` their mean. The note is the
    warning of the model-free baseline: where the two sets differ without any model, p says nothing.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for model in available_roles(evaluation, *MODELS):
            yield infer(evaluation, model)


def infer(
    evaluation: Evaluation, model: Role, tracks: Collection[str] | None = None, *, clips: ClipSet = "forget"
) -> Result:
    """The row of any set of tracks, such as an artist's; one with the reason where there are too few.

    For tracks of no set, derive an evaluation whose `clips` are they.

    Args:
        evaluation: with held-out tracks to compare with, in `holdout`.
        model: role of the model.
        tracks: ids of the tracks in question; None for all of the set.
        clips: the set that they are in.
    """
    name = "dataset_inference"
    reason = next(filter(None, (not_finite(evaluation, model, part) for part in (clips, "holdout"))), "")  # type: ignore[arg-type]
    if reason:
        return unmeasured(name, model, clips, reason, unit="p")
    features = membership_features(evaluation, model, clips), membership_features(evaluation, model, "holdout")
    names = [score for score in features[0] if score in features[1]]
    chosen = sorted(features[0][names[0]].keys() & set(tracks)) if tracks is not None else sorted(features[0][names[0]])
    others = sorted(features[1][names[0]])
    if min(len(chosen), len(others)) < LEAST:
        why = f"there are {len(chosen)} {clips} and {len(others)} holdout tracks, and it takes {LEAST} of each"
        return unmeasured(name, model, clips, why, unit="p")
    matrices = [
        np.array([[scores[score][track] for score in names] for track in order])
        for scores, order in zip(features, (chosen, others), strict=True)
    ]
    if not all(np.isfinite(matrix).all() for matrix in matrices):
        return unmeasured(name, model, clips, "a membership score is not finite", unit="p")
    scores = evidence_of(*matrices)
    placements = stats.placements(*scores)
    low, high = stats.auc_interval(float(placements.mean()), len(chosen), len(others))
    return Result(
        name, model, clips, stats.rank_test(*scores), n=len(chosen) + len(others), unit="p", direction="higher",
        per_track=dict(zip(chosen, placements.tolist(), strict=True)), note=baseline_warning(evaluation),
        details={"auc": float(placements.mean()), "auc_interval": [low, high], "scores": names,
            "forget": len(chosen), "holdout": len(others)},
    )  # fmt: skip


def combined(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over scores of each track's score in standard deviations, [N, F] -> [N]."""
    spread = scores.std(0)
    return np.asarray(((scores - scores.mean(0)) / np.where(spread > 0, spread, 1.0)).mean(1))


def evidence_of(
    members: NDArray[np.float64], others: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each track's combined score, standardised over both sets; [n, F] and [m, F] -> [n] and [m]."""
    evidence = combined(np.concatenate([members, others]))
    return evidence[: len(members)], evidence[len(members) :]


def membership_features(
    evaluation: Evaluation, model: Role, clips: ClipSet, *, without: Collection[str] = NEEDS_REFERENCE
) -> Mapping[str, Mapping[str, float]]:
    """Score -> track id -> value, of the membership scores that the models allow; computed once.

    Args:
        evaluation: has the model.
        model: its role.
        clips: the set.
        without: names of scores that are left out; by default those that need another model.
    """
    return evaluation.cached(
        ("dataset_inference", model, clips, tuple(without)),
        lambda: {
            name: score(evaluation, model, clips)
            for name, (score, why_not) in ATTACKS.items()
            if name not in without and not why_not(evaluation, model)
        },
    )
