"""Verbatim continuation: does greedy decoding reproduce a track?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from encore import stats
from encore.api import Clip, ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.rows import SETS, mean_row, rows_by_model, unmeasured

if TYPE_CHECKING:  # reports import `MATCH` without torch
    from torch import Tensor

MATCH = 0.8  # share of right first-codebook tokens of a verbatim continuation, as in MusicGen (arXiv 2306.05284)
PROMPT_SECONDS = 1.0
MODELS: tuple[Role, ...] = ("base", "unlearned", "gold")


class Verbatim(Metric):
    """Share of tracks that greedy decoding continues verbatim from their caption and first second.

    A continuation is verbatim if at least 80 % of its first-codebook tokens are right, in the best of the track's
    windows. `per_track` has the shares of right tokens; the interval is Clopper and Pearson's, over tracks.

    Rows named `_codes` have the mean share of right codes of all codebooks, rows named `_exact` the share of tracks of
    which every predicted code is right: MusicGen's paper reports partial and exact matches (arXiv 2306.05284,
    appendix D).
    """

    name = "verbatim"
    prompt_seconds = PROMPT_SECONDS

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        yield from rows_by_model(evaluation, self.name, SETS, MODELS, self._rows, unit="share")

    def _rows(self, evaluation: Evaluation, model: Role, clips: ClipSet) -> Iterator[Result]:
        tracks = right_shares(evaluation, model, clips, self.prompt_seconds)
        yield verbatim_row(self.name, model, clips, tracks, self.prompt_seconds)
        codes = right_shares(evaluation, model, clips, self.prompt_seconds, codebooks=None)
        if not codes:
            return  # the row above has the reason
        direction: Literal["gold", "base"] = "gold" if clips == "forget" else "base"
        yield mean_row(f"{self.name}_codes", model, clips, codes, evaluation, unit="share", direction=direction)
        exact = sum(share == 1.0 for share in codes.values())
        low, high = stats.share_interval(exact, len(codes)) or (None, None)
        yield Result(
            f"{self.name}_exact", model, clips, exact / len(codes), low, high, n=len(codes), unit="share",
            direction=direction, per_track={track: float(share == 1.0) for track, share in codes.items()},
        )  # fmt: skip


def right_shares(
    evaluation: Evaluation, model: Role, clips: ClipSet, prompt_seconds: float, codebooks: int | None = 1
) -> dict[str, float]:
    """Share of right tokens in the greedy continuation of each track, the highest over its windows.

    From the caption alone the prompt of all windows is the same, so each generation is compared with every window of
    its track. Tracks no longer than the prompt are left out, and so are tokens that the model is not trained to
    predict.

    Args:
        evaluation: the evaluation to read from.
        model: role of the model.
        clips: set of tracks.
        prompt_seconds: length of the audio prompt; 0 for the caption alone.
        codebooks: number of codebooks that are compared, the first by default; None means all.
    """
    prompt = round(prompt_seconds * evaluation.backend(model).frame_rate)
    members, masks = evaluation.clips[clips], evaluation.token_mask(clips)
    windows: dict[str, list[tuple[Clip, Tensor]]] = {}
    for clip, mask in zip(members, masks, strict=True):
        windows.setdefault(clip.track, []).append((clip, mask))
    comparisons = []
    for clip, clip_mask, generated in zip(members, masks, evaluation.continuations(model, clips, prompt), strict=True):
        for window, mask in [(clip, clip_mask)] if prompt else windows[clip.track]:
            end = min(generated.shape[-1], window.codes.shape[-1])
            counted = (clip_mask[:, :end] & mask[:, :end])[:codebooks, prompt:]
            right = (generated[:, :end] == window.codes[:, :end].cpu())[:codebooks, prompt:] & counted
            comparisons.append((clip.track, int(right.sum()), int(counted.sum())))
    return best_shares(comparisons)


def best_shares(comparisons: Iterable[tuple[str, int, int]]) -> dict[str, float]:
    """The highest share of right tokens of each track, by track id.

    Args:
        comparisons: (track, right tokens, tokens). Those with less than half the tokens of the track's longest one are
            ignored.
    """
    by_track: dict[str, list[tuple[int, int]]] = {}
    for track, right, count in comparisons:
        if count:
            by_track.setdefault(track, []).append((right, count))
    return {
        track: max(right / count for right, count in counts if 2 * count >= max(count for _, count in counts))
        for track, counts in sorted(by_track.items())
    }


def verbatim_row(
    metric: str, model: str, clips: ClipSet, tracks: Mapping[str, float], prompt_seconds: float, **fields: Any
) -> Result:
    """A row with the share of tracks whose share of right tokens is at least `MATCH`."""
    if not tracks:
        why = f"no {clips} track is longer than the prompt of {prompt_seconds:g} s"
        return unmeasured(metric, model, clips, why, unit="share")
    verbatim = sum(share >= MATCH for share in tracks.values())
    low, high = stats.share_interval(verbatim, len(tracks)) or (None, None)
    return Result(
        metric, model, clips, verbatim / len(tracks), low, high, n=len(tracks), unit="share",
        direction="gold" if clips == "forget" else "base", per_track=dict(tracks), **fields,
    )  # fmt: skip


class VerbatimCaption(Verbatim):
    """`verbatim` from the caption alone."""

    name = "verbatim_caption"
    prompt_seconds = 0.0
