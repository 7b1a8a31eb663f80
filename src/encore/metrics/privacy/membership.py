"""Membership inference from likelihoods: LOSS and Min-K."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from encore import stats
from encore.api import Clip, ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.rows import available_roles, by_track, unmeasured

MIN_K = 0.2  # share of a track's tokens; the default of Min-K and Min-K++
FPR = 0.01
MODELS: tuple[Role, ...] = ("base", "unlearned", "gold", "gold2")


class Membership(Metric):
    """LOSS and Min-K: forget tracks as members, holdout tracks as non-members; a higher likelihood means member.

    Rows: `membership_auc` (LOSS, Yeom et al., arXiv 1709.01604), `membership_auc_mink` (mean of the least likely 20 %
    of a track's tokens, Shi et al., arXiv 2310.16789), and for both the TPR at 1 % FPR, `membership_tpr_at_1_fpr` and
    `membership_tpr_at_1_fpr_mink`. `per_track` of an AUC is the share of holdout tracks with a lower score; its mean is
    the AUC. n counts both sets.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for model in available_roles(evaluation, *MODELS):
            loss = [negated(evaluation.nll(model, "forget")), negated(evaluation.nll(model, "holdout"))]
            yield auc_row("membership_auc", model, *loss)
            if evaluation.backend(model).has_tokens:
                lowest = [min_k(evaluation, model, "forget"), min_k(evaluation, model, "holdout")]
                yield auc_row("membership_auc_mink", model, *lowest)
                yield tpr_row("membership_tpr_at_1_fpr_mink", model, *lowest)
            else:
                yield unmeasured("membership_auc_mink", model, "forget", "the model has no tokens", unit="AUC")
            yield tpr_row("membership_tpr_at_1_fpr", model, *loss)


def auc_row(
    metric: str, model: str, members: Mapping[str, float], others: Mapping[str, float], **fields: Any
) -> Result:
    """A row with the AUC of two sets of scores; not measured if a score is NaN."""
    if any(map(math.isnan, (*members.values(), *others.values()))):
        return unmeasured(metric, model, "forget", "a track's likelihood is not a number", unit="AUC", **fields)
    placements = stats.placements(list(members.values()), list(others.values()))
    auc = float(placements.mean())
    low, high = stats.auc_interval(auc, len(members), len(others))
    return Result(
        metric, model, "forget", auc, low, high, n=len(members) + len(others), unit="AUC",
        per_track=dict(zip(members, placements.tolist(), strict=True)), details=_sizes(members, others), **fields,
    )  # fmt: skip


def tpr_row(metric: str, model: str, members: Mapping[str, float], others: Mapping[str, float]) -> Result:
    """A row with the true-positive rate at 1 % false positives."""
    if any(map(math.isnan, (*members.values(), *others.values()))):
        return unmeasured(metric, model, "forget", "a track's likelihood is not a number", unit="share")
    rate, threshold = stats.tpr_at_fpr(list(members.values()), list(others.values()), FPR)
    detected = {track: float(score > threshold) for track, score in members.items()}
    low, high = stats.share_interval(round(rate * len(members)), len(members)) or (None, None)
    note = f"with {len(others)} holdout tracks no false positive is allowed; 1 % requires 100 of them"
    return Result(
        metric, model, "forget", rate, low, high, n=len(members) + len(others), unit="share",
        per_track=detected, details=_sizes(members, others), note=note if len(others) < 1 / FPR else None,
    )  # fmt: skip


def min_k(evaluation: Evaluation, model: Role, clips: ClipSet, share: float = MIN_K) -> dict[str, float]:
    """Mean log-likelihood of the least likely `share` of each track's tokens (`lowest_mean`)."""
    tokens: dict[str, list[torch.Tensor]] = {}
    logprobs, masks = evaluation.token_logprobs(model, clips), evaluation.token_mask(clips)
    for clip, clip_logprobs, mask in zip(evaluation.clips[clips], logprobs, masks, strict=True):
        tokens.setdefault(clip.track, []).append(clip_logprobs[mask])
    return {track: lowest_mean(torch.cat(parts), share) for track, parts in sorted(tokens.items())}


def lowest_mean(values: torch.Tensor, share: float = MIN_K) -> float:
    """Mean of the lowest ⌊share · n⌋ (at least one) of n values, as in the code of Min-K and Min-K++."""
    return float(values.double().sort().values[: max(1, int(share * len(values)))].mean())


def negated_zlib_size(clips: Sequence[Clip]) -> dict[str, float]:
    """Minus the zlib-compressed bytes per token of each track's codes in frame order (latents in steps of 1/16)."""
    codes = [clip.codes * 16 if clip.codes.is_floating_point() else clip.codes for clip in clips]
    streams = [c.T.round().to(torch.int32).cpu().contiguous().numpy().astype("<u2").tobytes() for c in codes]
    sizes = [-float(len(zlib.compress(stream, 9))) for stream in streams]
    return by_track(clips, sizes, [clip.codes.numel() for clip in clips])


def negated(scores: Mapping[str, float]) -> dict[str, float]:
    return {track: -score for track, score in scores.items()}


def _sizes(members: Mapping[str, float], others: Mapping[str, float]) -> dict[str, object]:
    return {"forget": len(members), "holdout": len(others)}
