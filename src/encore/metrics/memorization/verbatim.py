"""Replay: does the model play a track back, note for note?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from encore import stats
from encore.api import Clip, ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.rows import SETS, given, mean_row, no_clips, not_finite, unmeasured

if TYPE_CHECKING:  # a report reads `MATCH`, and needs no torch
    from torch import Tensor

MATCH = 0.8  # share of right first-codebook tokens that makes a replay, as in MusicGen's own test (arXiv 2306.05284)
PROMPT_SECONDS = 1.0
MODELS: tuple[Role, ...] = ("base", "unlearned", "gold")


class Verbatim(Metric):
    """Share of tracks that greedy decoding replays from their caption and first second.

    A track replays where at least 80 % of the first codebook's tokens of the continuation are right, in the best of its
    windows. `per_track` has the shares of right tokens; the interval is Wilson's, over tracks.

    Rows with `_codes` after the name have the mean share of right codes of all codebooks, rows with `_exact` the share
    of tracks of which every predicted code is right: MusicGen's paper reports both kinds of match, partial and exact
    (arXiv 2306.05284, appendix D).
    """

    name = "verbatim"
    prompt_seconds = PROMPT_SECONDS

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for clips in SETS:
            if not evaluation.clips.get(clips):
                yield no_clips(self.name, clips, unit="share")
                continue
            for model in given(evaluation, *MODELS):
                broken = not_finite(evaluation, model, clips)
                if broken:
                    yield unmeasured(self.name, model, clips, broken, unit="share")
                    continue
                tracks = right_shares(evaluation, model, clips, self.prompt_seconds)
                yield replay_row(self.name, model, clips, tracks, self.prompt_seconds)
                codes = right_shares(evaluation, model, clips, self.prompt_seconds, codebooks=None)
                if not codes:
                    continue  # the row above says why
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
    """A track's share of right tokens in the greedy continuation of its caption and so many seconds of it.

    The best of a track's windows counts. From the caption alone all windows are asked for in one way, and the model may
    answer with any of them: each play is then compared with every window. Tracks that are no longer than the prompt are
    left out, and tokens that the model is not trained to predict.

    Args:
        codebooks: how many of them count, the first by default; None means all.
    """
    prompt = round(prompt_seconds * evaluation.backend(model).frame_rate)
    chosen, masks = evaluation.clips[clips], evaluation.token_mask(clips)
    of_track: dict[str, list[tuple[Clip, Tensor]]] = {}
    for clip, mask in zip(chosen, masks, strict=True):
        of_track.setdefault(clip.track, []).append((clip, mask))
    found = []
    for clip, own, played in zip(chosen, masks, evaluation.continuations(model, clips, prompt), strict=True):
        for other, mask in [(clip, own)] if prompt else of_track[clip.track]:
            end = min(played.shape[-1], other.codes.shape[-1])
            counted = (own[:, :end] & mask[:, :end])[:codebooks, prompt:]
            right = (played[:, :end] == other.codes[:, :end].cpu())[:codebooks, prompt:] & counted
            found.append((clip.track, int(right.sum()), int(counted.sum())))
    return best_shares(found)


def best_shares(found: Iterable[tuple[str, int, int]]) -> dict[str, float]:
    """Comparisons (track, right tokens, tokens) -> the highest share of right ones of each track, by track id.

    What has less than half the tokens of a track's longest comparison says little, and does not count.
    """
    by_track: dict[str, list[tuple[int, int]]] = {}
    for track, right, count in found:
        if count:
            by_track.setdefault(track, []).append((right, count))
    return {
        track: max(right / count for right, count in own if 2 * count >= max(count for _, count in own))
        for track, own in sorted(by_track.items())
    }


def replay_row(
    metric: str, model: str, clips: ClipSet, tracks: Mapping[str, float], prompt_seconds: float, **fields: Any
) -> Result:
    """A row whose figure is the share of tracks that replay, from their shares of right tokens."""
    if not tracks:
        why = f"no {clips} track is longer than the prompt of {prompt_seconds:g} s"
        return unmeasured(metric, model, clips, why, unit="share")
    replayed = sum(share >= MATCH for share in tracks.values())
    low, high = stats.share_interval(replayed, len(tracks)) or (None, None)
    return Result(
        metric, model, clips, replayed / len(tracks), low, high, n=len(tracks), unit="share",
        direction="gold" if clips == "forget" else "base", per_track=dict(tracks), **fields,
    )  # fmt: skip


class VerbatimCaption(Verbatim):
    """The same from the caption alone."""

    name = "verbatim_caption"
    prompt_seconds = 0.0
