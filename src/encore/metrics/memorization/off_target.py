"""Off-target memorisation: passages of forget tracks in generations for other prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from encore.api import Clip, ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.memorization.verbatim import MATCH, MODELS, PROMPT_SECONDS, verbatim_row
from encore.metrics.rows import SETS, rows_by_model, unmeasured, windows_by_track
from encore.metrics.similarity.alignment import best_passage

PASSAGE_SECONDS = 2.0
MIN_SHARE = 0.5  # share of equal codes below which a passage is not searched for
TARGETS: tuple[ClipSet, ...] = ("forget", "holdout")


@dataclass(frozen=True)
class Generation:
    """A generation.

    Args:
        source: description of its prompt.
        codes: first codebook, without the prompt, [T].
    """

    source: str
    codes: Tensor


class VerbatimElsewhere(Metric):
    """Share of tracks of which a 2 s passage appears verbatim, at any position, in generations for other prompts.

    The generations are the greedy ones of `verbatim` and `verbatim_caption`, for all three sets. Each is compared with
    every forget track at every alignment. A track counts if in some 2 s at least 80 % of the first codebook's tokens
    match (passages of one held code are ignored). Generations that match the prompted track are covered by `verbatim`
    and `verbatim_caption` and left out here. Rows of holdout give the rate by chance.

    `per_track` has the best share of each track, 0 if none is above .5; `details["where"]` has the prompt of each
    track that appears.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        yield from rows_by_model(evaluation, "verbatim_elsewhere", TARGETS, MODELS, _rows, unit="share")


def _rows(evaluation: Evaluation, model: Role, clips: ClipSet) -> Iterator[Result]:
    yield passage_row("verbatim_elsewhere", evaluation, model, clips, _off_target(evaluation, model))


def _off_target(evaluation: Evaluation, model: Role) -> list[Generation]:
    """Greedy generations that do not match the prompted track."""
    return evaluation.cached(("verbatim_elsewhere", model), lambda: list(_search(evaluation, model)))


def _search(evaluation: Evaluation, model: Role) -> Iterator[Generation]:
    prompt = round(PROMPT_SECONDS * evaluation.backend(model).frame_rate)
    for clips in (name for name in SETS if evaluation.clips.get(name)):
        members = evaluation.clips[clips]
        windows = windows_by_track(members)
        for prompt_frames in (0, prompt):
            generated = evaluation.continuations(model, clips, prompt_frames)
            for clip, codes in zip(members, generated, strict=True):
                targets = [clip] if prompt_frames else windows[clip.track]
                if codes.shape[-1] <= prompt_frames or any(
                    _matches(codes, target.codes, prompt_frames) for target in targets
                ):
                    continue
                audio = f" and {PROMPT_SECONDS:g} s" if prompt_frames else ""
                yield Generation(f"caption{audio} of {clip.track} ({clips})", codes[0, prompt_frames:].cpu())


def _matches(generated: Tensor, codes: Tensor, prompt: int) -> bool:
    frames = min(generated.shape[-1], codes.shape[-1])
    return bool((generated[0, prompt:frames] == codes[0, prompt:frames].cpu()).double().mean() >= MATCH)


def passage_row(
    metric: str, evaluation: Evaluation, model: Role, clips: ClipSet, generations: Sequence[Generation], **fields: Any
) -> Result:
    """A row with the share of tracks of which a passage appears in a generation."""
    frames = round(PASSAGE_SECONDS * evaluation.backend(model).frame_rate)
    long = [clip for clip in evaluation.clips[clips] if clip.codes.shape[-1] >= frames]
    if not long:
        return unmeasured(metric, model, clips, f"no {clips} track is {PASSAGE_SECONDS:g} s long", unit="share")
    tracks, where = _passages(generations, long, frames)
    details = {"where": where, "generations": len(generations), "passage_seconds": PASSAGE_SECONDS}
    return verbatim_row(metric, model, clips, tracks, PROMPT_SECONDS, details=details, **fields)


def _passages(
    generations: Iterable[Generation], clips: Sequence[Clip], frames: int
) -> tuple[dict[str, float], Mapping[str, str]]:
    """Each track's highest share in any generation, and the prompt of each track that appears."""
    best = dict.fromkeys(sorted(clip.track for clip in clips), 0.0)
    where: dict[str, str] = {}
    references = [(clip.track, clip.codes[0].cpu().numpy()) for clip in clips]
    for generation in generations:
        codes = generation.codes.numpy()
        for track, reference in references:
            share = best_passage(codes, reference, frames, MIN_SHARE).share
            if share > best[track]:
                best[track] = share
                if share >= MATCH:
                    where[track] = generation.source
    return best, where
