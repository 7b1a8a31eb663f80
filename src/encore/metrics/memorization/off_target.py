"""Are forget tracks generated where they were not asked for: for another caption, or from their middle?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from encore.api import Clip, ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.memorization.verbatim import MATCH, MODELS, PROMPT_SECONDS, replay_row
from encore.metrics.rows import SETS, given, no_clips, not_finite, unmeasured
from encore.metrics.similarity.alignment import best_passage

PASSAGE_SECONDS = 2.0
FAINT = 0.5  # share of equal codes below which a passage is not looked for
TARGETS: tuple[ClipSet, ...] = ("forget", "holdout")


@dataclass(frozen=True)
class Generation:
    """What a model generated.

    Args:
        source: what for, in words.
        codes: first codebook, without the prompt, [T].
    """

    source: str
    codes: Tensor


class VerbatimElsewhere(Metric):
    """Share of tracks of which 2 s come out verbatim, at any place, in generations that were asked for something else.

    The generations are the greedy ones of `verbatim` and `verbatim_caption`, of all three sets. Each is compared with
    every forget track at every alignment: a track counts where, in some 2 s, at least 80 % of the first codebook's
    tokens are its own (passages of one held code do not count). A generation that is its own track, as asked, is
    left to `verbatim` and `verbatim_caption`. Rows of holdout say how often that happens by chance.

    `per_track` has the best share of each track, 0 where none is above .5; `details["where"]` says of each track that
    comes out what for.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for clips in TARGETS:
            if not evaluation.clips.get(clips):
                yield no_clips("verbatim_elsewhere", clips, unit="share")
                continue
            for model in given(evaluation, *MODELS):
                if broken := not_finite(evaluation, model, clips):
                    yield unmeasured("verbatim_elsewhere", model, clips, broken, unit="share")
                    continue
                yield passage_row("verbatim_elsewhere", evaluation, model, clips, _astray(evaluation, model))


def _astray(evaluation: Evaluation, model: Role) -> list[Generation]:
    """Generations that are not the track which was asked for."""
    return evaluation.cached(("verbatim_elsewhere", model), lambda: list(_all_astray(evaluation, model)))


def _all_astray(evaluation: Evaluation, model: Role) -> Iterator[Generation]:
    prompt = round(PROMPT_SECONDS * evaluation.backend(model).frame_rate)
    for clips in (name for name in SETS if evaluation.clips.get(name)):
        chosen = evaluation.clips[clips]
        windows: dict[str, list[Clip]] = {}
        for clip in chosen:
            windows.setdefault(clip.track, []).append(clip)
        for given_frames in (0, prompt):
            generated = evaluation.continuations(model, clips, given_frames)
            for clip, codes in zip(chosen, generated, strict=True):
                own = [clip] if given_frames else windows[clip.track]
                if codes.shape[-1] <= given_frames or any(_is(codes, one.codes, given_frames) for one in own):
                    continue
                beside = f" and {PROMPT_SECONDS:g} s" if given_frames else ""
                yield Generation(f"caption{beside} of {clip.track} ({clips})", codes[0, given_frames:].cpu())


def _is(generated: Tensor, codes: Tensor, prompt: int) -> bool:
    frames = min(generated.shape[-1], codes.shape[-1])
    return bool((generated[0, prompt:frames] == codes[0, prompt:frames].cpu()).double().mean() >= MATCH)


def passage_row(
    metric: str, evaluation: Evaluation, model: Role, clips: ClipSet, generations: Sequence[Generation], **fields: Any
) -> Result:
    """A row whose figure is the share of tracks of which a passage is in one of the generations."""
    frames = round(PASSAGE_SECONDS * evaluation.backend(model).frame_rate)
    long = [clip for clip in evaluation.clips[clips] if clip.codes.shape[-1] >= frames]
    if not long:
        return unmeasured(metric, model, clips, f"no {clips} track is {PASSAGE_SECONDS:g} s long", unit="share")
    tracks, where = _passages(generations, long, frames)
    details = {"where": where, "generations": len(generations), "passage_seconds": PASSAGE_SECONDS}
    return replay_row(metric, model, clips, tracks, PROMPT_SECONDS, details=details, **fields)


def _passages(
    generations: Iterable[Generation], clips: Sequence[Clip], frames: int
) -> tuple[dict[str, float], Mapping[str, str]]:
    """Of each track the highest share in any generation; and of those that come out, what for."""
    best = dict.fromkeys(sorted(clip.track for clip in clips), 0.0)
    where: dict[str, str] = {}
    references = [(clip.track, clip.codes[0].cpu().numpy()) for clip in clips]
    for generation in generations:
        codes = generation.codes.numpy()
        for track, reference in references:
            share = best_passage(codes, reference, frames, FAINT).share
            if share > best[track]:
                best[track] = share
                if share >= MATCH:
                    where[track] = generation.source
    return best, where
