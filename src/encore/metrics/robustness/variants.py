"""Attacks with several prompt variants per track, of which the most successful one counts.

Each variant is a clip whose track id is tagged with the variant's name, so that all are generated in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from encore.api import Clip, ClipSet, Evaluation, Result, Role
from encore.metrics.memorization.verbatim import MODELS, best_shares, verbatim_row
from encore.metrics.rows import MARK, available_roles, mean_row, no_continuations, unmeasured


@dataclass(frozen=True)
class Variant:
    """A prompt variant of a clip.

    Args:
        name: name of the variant.
        original: the original clip.
        clip: the changed clip; its track is `tag`ged.
        tempo: frames of the original per frame of the clip.
    """

    name: str
    original: Clip
    clip: Clip
    tempo: float = 1.0


def tag(track: str, name: str) -> str:
    return f"{track}{MARK}{name}"


def strongest(tagged: Mapping[str, float], best: Callable[[Sequence[float]], float]) -> dict[str, float]:
    """The best value over the variants of each track, from values of tagged tracks."""
    return _grouped(tagged, 0, best)


def means(tagged: Mapping[str, float]) -> dict[str, float]:
    """The mean over tracks of each variant, from values of tagged tracks."""
    return _grouped(tagged, 2, lambda values: sum(values) / len(values))


def _grouped(tagged: Mapping[str, float], part: int, reduce: Callable[[Sequence[float]], float]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for name, value in tagged.items():
        groups.setdefault(name.partition(MARK)[part], []).append(value)
    return {name: reduce(values) for name, values in sorted(groups.items())}


def attack_rows(
    metric: str, evaluation: Evaluation, variants: Sequence[Variant], prompts: Mapping[str, float]
) -> Iterator[Result]:
    """Lowest NLL and highest share of right tokens over the variants of each forget track, for every model.

    Args:
        metric: first part of the rows' names: `METRIC_nll`, and `METRIC_NAME` for each prompt.
        evaluation: the evaluation of the original clips.
        variants: the variants to measure.
        prompts: name -> seconds of audio prompt beside the caption.

    Returns:
        Rows with the mean of each variant in `details`.
    """
    attacked = evaluation.derive(clips={"forget": [variant.clip for variant in variants]})
    for model in available_roles(evaluation, *MODELS):
        backend = evaluation.backend(model)
        tagged = attacked.nll(model, "forget")
        yield mean_row(
            f"{metric}_nll", model, "forget", strongest(tagged, min), evaluation, unit=backend.unit,
            details={"variants": means(tagged)},
        )  # fmt: skip
        why = no_continuations(attacked, model, "forget")
        for name, seconds in prompts.items():
            if why:
                yield unmeasured(f"{metric}_{name}", model, "forget", why, unit="share")
                continue
            tagged = right_shares(attacked, model, variants, seconds)
            details = {"variants": means(tagged)}
            yield verbatim_row(f"{metric}_{name}", model, "forget", strongest(tagged, max), seconds, details=details)


def right_shares(
    attacked: Evaluation, model: Role, variants: Sequence[Variant], prompt_seconds: float, clips: ClipSet = "forget"
) -> dict[str, float]:
    """Share of right first-codebook tokens in the continuation of each tagged track, as `verbatim.right_shares`.

    A model that is prompted in another tempo or key may continue in that or in the original one: the better counts.
    """
    prompt = round(prompt_seconds * attacked.backend(model).frame_rate)
    by_track: dict[str, list[Variant]] = {}
    for variant in variants:
        by_track.setdefault(variant.clip.track, []).append(variant)
    comparisons = []
    for generated, prompted in zip(attacked.continuations(model, clips, prompt), variants, strict=True):
        for variant in [prompted] if prompt else by_track[prompted.clip.track]:
            targets = [variant.clip.codes[0, prompt:], variant.original.codes[0, round(prompt * variant.tempo) :]]
            comparisons += [(prompted.clip.track, *_matches(generated[0, prompt:], codes.cpu())) for codes in targets]
    return best_shares(comparisons)


def _matches(generated: Tensor, codes: Tensor) -> tuple[int, int]:
    """The number of equal codes, and of compared codes."""
    frames = min(len(generated), len(codes))
    return int((generated[:frames] == codes[:frames]).sum()), frames
