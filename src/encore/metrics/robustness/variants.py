"""Attacks that ask for a track in several ways: each is a clip of its own, and the one that brings back most counts.

A variant of a clip keeps its track's id behind a mark, so that all variants of all tracks are played in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from encore.api import Clip, ClipSet, Evaluation, Result, Role
from encore.metrics.memorization.verbatim import MODELS, best_shares, replay_row
from encore.metrics.rows import given, mean_row, not_finite, unmeasured

MARK = "\x1f"  # between a track's id and its variant's name; no id has a control character


@dataclass(frozen=True)
class Variant:
    """One way to ask for one clip.

    Args:
        name: of the way. original: the clip it is about. clip: what the model is given; its track is `tag`ged.
        pace: frames of the original that pass in one frame of the clip.
    """

    name: str
    original: Clip
    clip: Clip
    pace: float = 1.0


def tag(track: str, name: str) -> str:
    return f"{track}{MARK}{name}"


def strongest(tagged: Mapping[str, float], best: Callable[[Sequence[float]], float]) -> dict[str, float]:
    """Figures of tagged tracks -> of each track the best over its variants."""
    found: dict[str, list[float]] = {}
    for name, value in tagged.items():
        found.setdefault(name.partition(MARK)[0], []).append(value)
    return {track: best(values) for track, values in sorted(found.items())}


def means(tagged: Mapping[str, float]) -> dict[str, float]:
    """Figures of tagged tracks -> of each variant the mean over tracks."""
    found: dict[str, list[float]] = {}
    for name, value in tagged.items():
        found.setdefault(name.partition(MARK)[2], []).append(value)
    return {variant: sum(values) / len(values) for variant, values in sorted(found.items())}


def attack_rows(
    metric: str, evaluation: Evaluation, variants: Sequence[Variant], prompts: Mapping[str, float]
) -> Iterator[Result]:
    """Lowest NLL and highest replay share over the variants of each forget track, for every model.

    Args:
        metric: first part of the rows' names: `METRIC_nll`, and `METRIC_NAME` for each prompt.
        prompts: name -> seconds of audio that are given beside the caption.

    Returns:
        Rows with the mean figure of each variant in `details`.
    """
    told = evaluation.derive(clips={"forget": [variant.clip for variant in variants]})
    for model in given(evaluation, *MODELS):
        backend = evaluation.backend(model)
        tagged = told.nll(model, "forget")
        yield mean_row(
            f"{metric}_nll", model, "forget", strongest(tagged, min), evaluation, unit=backend.unit,
            details={"variants": means(tagged)},
        )  # fmt: skip
        why = not_finite(told, model, "forget") if backend.has_tokens else "the model has no tokens"
        for name, seconds in prompts.items():
            if why:
                yield unmeasured(f"{metric}_{name}", model, "forget", why, unit="share")
                continue
            tagged = right_shares(told, model, variants, seconds)
            details = {"variants": means(tagged)}
            yield replay_row(f"{metric}_{name}", model, "forget", strongest(tagged, max), seconds, details=details)


def right_shares(
    told: Evaluation, model: Role, variants: Sequence[Variant], prompt_seconds: float, clips: ClipSet = "forget"
) -> dict[str, float]:
    """Share of right first-codebook tokens in the continuation of each tagged track, as `verbatim.right_shares`.

    A model that is asked in another pace or key may play on in that one or in the track's own: the better counts.
    """
    prompt = round(prompt_seconds * told.backend(model).frame_rate)
    of_track: dict[str, list[Variant]] = {}
    for variant in variants:
        of_track.setdefault(variant.clip.track, []).append(variant)
    found = []
    for played, asked in zip(told.continuations(model, clips, prompt), variants, strict=True):
        for variant in [asked] if prompt else of_track[asked.clip.track]:
            after = [variant.clip.codes[0, prompt:], variant.original.codes[0, round(prompt * variant.pace) :]]
            found += [(asked.clip.track, *_matches(played[0, prompt:], codes.cpu())) for codes in after]
    return best_shares(found)


def _matches(played: Tensor, codes: Tensor) -> tuple[int, int]:
    """Equal codes, and how many there are to compare."""
    frames = min(len(played), len(codes))
    return int((played[:frames] == codes[:frames]).sum()), frames
