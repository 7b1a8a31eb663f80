"""What a model plays when it is asked for a track by words alone, in several ways."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from encore.api import Clip, ClipSet, Evaluation, Role
from encore.metrics.robustness.paraphrases import rewordings
from encore.metrics.robustness.variants import MARK, tag

DRAWS = 3


@dataclass(frozen=True)
class Play:
    """What a model played: for which track's caption, asked how ("greedy", "draw 1", "short"), codes [K, T]."""

    track: str
    asked: str
    codes: Tensor


def plays(evaluation: Evaluation, model: Role, clips: ClipSet) -> list[Play]:
    """All that is played for a set's captions, without any audio prompt; made once a model."""
    return evaluation.cached(("likeness", model, clips), lambda: _plays(evaluation, model, clips))


def _plays(evaluation: Evaluation, model: Role, clips: ClipSet) -> list[Play]:
    first = {clip.track: clip for clip in reversed(evaluation.clips[clips])}  # a track's first window
    asked = []
    for track, clip in sorted(first.items()):
        asked += [Clip(tag(track, f"draw {i + 1}"), clip.caption, clip.codes) for i in range(DRAWS)]
        short = rewordings(clip.caption).get("short")
        if short:
            asked.append(Clip(tag(track, "short"), short, clip.codes))
    drawn = evaluation.derive(models={model: evaluation.backend(model)}, clips={"forget": asked})
    generated = drawn.generations(model, "forget")  # each as often as the evaluation draws
    again = len(generated) // max(len(asked), 1)
    names = [name for name in sorted(clip.track for clip in asked) for _ in range(again)]
    found = []
    for name, codes in zip(names, generated, strict=True):
        track, _, how = name.partition(MARK)
        found.append(Play(track, how, codes))
    if evaluation.backend(model).has_tokens:
        greedy = zip(evaluation.clips[clips], evaluation.continuations(model, clips, 0), strict=True)
        found += [Play(clip.track, "greedy", codes) for clip, codes in greedy if first[clip.track] is clip]
    return found
