"""Replay: does the model play a track back, note for note?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from encore import stats
from encore.api import ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.rows import SETS, by_track, given, mean_row, no_clips, not_finite, unmeasured

MATCH = 0.8  # share of right first-codebook tokens that makes a replay, as in MusicGen's own test (arXiv 2306.05284)
PROMPT_SECONDS = 1.0
MODELS: tuple[Role, ...] = ("base", "unlearned", "gold")


class Verbatim(Metric):
    """Share of tracks that greedy decoding replays from their caption and first second.

    A track replays where at least 80 % of the first codebook's tokens of the continuation are right. `per_track` has
    the shares of right tokens; the interval is Wilson's, over tracks.

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

    Tracks that are no longer than the prompt are left out, and tokens that the model is not trained to predict.

    Args:
        codebooks: how many of them count, the first by default; None means all.
    """
    prompt = round(prompt_seconds * evaluation.backend(model).frame_rate)
    played = evaluation.continuations(model, clips, prompt)
    right, counts = [], []
    for codes, clip, mask in zip(played, evaluation.clips[clips], evaluation.token_mask(clips), strict=True):
        later = slice(prompt, codes.shape[-1])
        counted = mask[:codebooks, later]
        right.append(int(((codes == clip.codes[:, : codes.shape[-1]].cpu())[:codebooks, later] & counted).sum()))
        counts.append(int(counted.sum()))
    return by_track(evaluation.clips[clips], right, counts)


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
