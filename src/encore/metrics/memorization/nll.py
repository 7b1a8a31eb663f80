"""Mean negative log-likelihood per token, also per codebook, and its signed relative difference to gold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from encore import stats
from encore.api import ClipSet, Evaluation, Metric, Result, Role
from encore.memorised import is_memorised, memorised_below
from encore.metrics.rows import SETS, available_roles, by_track, code_entropies, mean_row, no_clips, unmeasured

BEGINNING_SECONDS = 0.2


class Nll(Metric):
    """Rows `nll`, `nll_beginning`, `nll_codebook_0` … `nll_codebook_{K-1}`, and `nll_gap_gold` = (model - gold) / gold.

    Retain also has rows `nll_memorised` and `nll_not_memorised`, over the tracks that base has memorised and over the
    others (`encore.memorised`); `details["memorised_below"]` of retain's rows is the threshold on base's NLL.
    `details["memorised"]` of forget's rows are the tracks that the model has memorised, by the same threshold (gold's
    without base) and the entropy of their codes.

    `nll_beginning` is of each track's first 0.2 s alone. A generation starts there, with only the caption to go by, and
    the mean over a track hides it.

    The gap is signed: below 0 the model still knows the tracks, above 0 it avoids them, and both reveal that they were
    once learnt. For a model without tokens the NLL is the training loss at each clip's fixed noise.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        unit = next(iter(evaluation.models.values())).unit
        for clips in SETS:
            if not evaluation.clips.get(clips):
                yield no_clips("nll", clips, unit=unit)
                continue
            threshold = _memorised_below(evaluation) if clips == "retain" else None
            judges = available_roles(evaluation, "base", "gold") if clips == "forget" else []
            limit = _memorised_below(evaluation, judges[0]) if judges else None
            for model in available_roles(evaluation):
                details: dict[str, Any] = {} if threshold is None else {"memorised_below": threshold}
                if limit is not None:
                    details = {"memorised": _memorised(evaluation, model, limit)}
                yield mean_row(
                    "nll", model, clips, evaluation.nll(model, clips), evaluation, unit=unit,
                    direction="gold" if clips == "forget" else "base", details=details,
                )  # fmt: skip
                if evaluation.backend(model).has_tokens:
                    yield self._beginning(evaluation, model, clips)
                    yield from self._codebooks(evaluation, model, clips)
            if threshold is not None:
                yield from self._memorised_rows(evaluation, threshold)
            for model in available_roles(evaluation, "base", "unlearned", "gold2"):
                yield self._gap(evaluation, model, clips)

    def _beginning(self, evaluation: Evaluation, model: Role, clips: ClipSet) -> Result:
        frames = max(1, round(BEGINNING_SECONDS * evaluation.backend(model).frame_rate))
        windows = evaluation.clips[clips]
        firsts = {clip.track: i for i, clip in reversed(list(enumerate(windows)))}.values()
        logprobs, masks = evaluation.token_logprobs(model, clips), evaluation.token_mask(clips)
        tracks = by_track(
            [windows[i] for i in firsts],
            [-float(logprobs[i][:, :frames].double().sum()) for i in firsts],
            [int(masks[i][:, :frames].sum()) for i in firsts],
        )
        return mean_row(
            "nll_beginning", model, clips, tracks, evaluation, unit="nats/token",
            direction="gold" if clips == "forget" else "base",
        )  # fmt: skip

    def _codebooks(self, evaluation: Evaluation, model: Role, clips: ClipSet) -> Iterator[Result]:
        logprobs, masks = evaluation.token_logprobs(model, clips), evaluation.token_mask(clips)
        for k in range(evaluation.backend(model).codebooks):
            tracks = by_track(
                evaluation.clips[clips],
                [-float(clip[k].double().sum()) for clip in logprobs],
                [int(mask[k].sum()) for mask in masks],
            )
            yield mean_row(
                f"nll_codebook_{k}", model, clips, tracks, evaluation, unit="nats/token",
                direction="gold" if clips == "forget" else "base",
            )  # fmt: skip

    def _memorised_rows(self, evaluation: Evaluation, threshold: float) -> Iterator[Result]:
        base = evaluation.nll("base", "retain")
        parts = {
            "nll_memorised": [track for track, nll in base.items() if nll < threshold],
            "nll_not_memorised": [track for track, nll in base.items() if not nll < threshold],
        }
        for name, tracks in parts.items():
            if not tracks:
                word = "none" if name == "nll_memorised" else "all"
                why = f"base has memorised {word} of the retain tracks"
                yield unmeasured(name, "unlearned", "retain", why, unit="nats/token", direction="base")
                continue
            for model in available_roles(evaluation):
                nll = evaluation.nll(model, "retain")
                yield mean_row(
                    name, model, "retain", {track: nll[track] for track in tracks}, evaluation, unit="nats/token",
                    direction="base",
                )  # fmt: skip

    def _gap(self, evaluation: Evaluation, model: Role, clips: ClipSet) -> Result:
        if "gold" not in evaluation.models:
            return unmeasured("nll_gap_gold", model, clips, "no gold model was given")
        nll, gold = evaluation.nll(model, clips), evaluation.nll("gold", clips)
        pairs = [(nll[track], gold[track]) for track in gold]
        low, high = stats.bootstrap_interval(
            pairs, lambda rows: float(rows[:, 0].sum() / rows[:, 1].sum() - 1), seed=evaluation.seed
        ) or (None, None)
        return Result(
            "nll_gap_gold", model, clips, sum(a for a, _ in pairs) / sum(b for _, b in pairs) - 1, low, high,
            n=len(pairs), per_track={track: nll[track] / gold[track] - 1 for track in gold},
        )  # fmt: skip


def _memorised(evaluation: Evaluation, model: Role, limit: float) -> list[str]:
    """Forget tracks that the model has memorised."""
    entropies = code_entropies(evaluation.clips["forget"])
    return [
        track for track, nll in evaluation.nll(model, "forget").items() if is_memorised(nll, limit, entropies[track])
    ]


def _memorised_below(evaluation: Evaluation, role: Role = "base") -> float | None:
    """The NLL of a model below which a track is memorised; None without the model or without tokens."""
    if role not in evaluation.models or not evaluation.backend(role).has_tokens:
        return None
    holdout = evaluation.nll(role, "holdout") if evaluation.clips.get("holdout") else {}
    holdout_nll = sum(holdout.values()) / len(holdout) if holdout else None
    return memorised_below(holdout_nll, evaluation.backend(role).codebook_size)
