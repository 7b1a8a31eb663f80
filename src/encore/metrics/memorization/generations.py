"""Generations for a track's caption, without an audio prompt: greedy, sampled, and for a shortened caption."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from encore.api import Clip, ClipSet, Evaluation, Role
from encore.metrics.robustness.paraphrases import paraphrases
from encore.metrics.robustness.variants import tag
from encore.metrics.rows import MARK

SAMPLES = 3  # generations per caption


@dataclass(frozen=True)
class CaptionGeneration:
    """A generation for a track's caption.

    Args:
        track: id of the track.
        variant: "greedy", "sample 1" … or "short".
        codes: [K, T].
    """

    track: str
    variant: str
    codes: Tensor


def caption_generations(evaluation: Evaluation, model: Role, clips: ClipSet) -> list[CaptionGeneration]:
    """All variants for a set's captions, without an audio prompt; computed once per model."""
    return evaluation.cached(("similarity", model, clips), lambda: _generate(evaluation, model, clips))


def _generate(evaluation: Evaluation, model: Role, clips: ClipSet) -> list[CaptionGeneration]:
    first = {clip.track: clip for clip in reversed(evaluation.clips[clips])}  # a track's first window
    prompts = []
    for track, clip in sorted(first.items()):
        prompts += [Clip(tag(track, f"sample {i + 1}"), clip.caption, clip.codes) for i in range(SAMPLES)]
        short = paraphrases(clip.caption).get("short")
        if short:
            prompts.append(Clip(tag(track, "short"), short, clip.codes))
    sampling = evaluation.derive(models={model: evaluation.backend(model)}, clips={"forget": prompts})
    sampled = sampling.generations(model, "forget")
    per_prompt = len(sampled) // max(len(prompts), 1)
    names = [name for name in sorted(clip.track for clip in prompts) for _ in range(per_prompt)]
    generations = []
    for name, codes in zip(names, sampled, strict=True):
        track, _, variant = name.partition(MARK)
        generations.append(CaptionGeneration(track, variant, codes))
    if evaluation.backend(model).has_tokens:
        greedy = zip(evaluation.clips[clips], evaluation.continuations(model, clips, 0), strict=True)
        generations += [
            CaptionGeneration(clip.track, "greedy", codes) for clip, codes in greedy if first[clip.track] is clip
        ]
    return generations
