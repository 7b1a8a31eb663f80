"""Fast probes: forget tracks under prompts that differ slightly from the training prompts.

Audio prompts from the middle of a track, and captions with a random edit. All are generated in one batch and are short:
one window per track, two seconds of continuation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from encore.api import Clip, ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.memorization.verbatim import MODELS, PROMPT_SECONDS, verbatim_row
from encore.metrics.robustness.paraphrases import random_paraphrase
from encore.metrics.robustness.variants import Variant, strongest, tag
from encore.metrics.robustness.variants import right_shares as variant_shares
from encore.metrics.rows import (
    available_roles,
    first_windows,
    mean_row,
    no_continuations,
    rows_by_model,
    unmeasured,
    windows_by_track,
)

OFFSETS = 3  # prompts from the middle of each forget track
CHANCE_OFFSETS = 1  # and of each holdout track
CONTINUED_SECONDS = 2.0
TARGETS: tuple[ClipSet, ...] = ("forget", "holdout")


@dataclass(frozen=True)
class Probes:
    """Evaluations whose clips are prompt variants, with the variants in the order of the clips.

    Args:
        evaluation: its clips are short audio prompts with their continuation, `forget` and `holdout`.
        prompts: the variants of `evaluation`, by set.
        caption_evaluation: its clips are whole windows under a paraphrased caption; None if none can be paraphrased.
        paraphrased: the variants of `caption_evaluation`.
    """

    evaluation: Evaluation
    prompts: dict[ClipSet, list[Variant]]
    caption_evaluation: Evaluation | None
    paraphrased: list[Variant]


def probes(evaluation: Evaluation) -> Probes:
    """The probes of an evaluation, computed once."""
    return evaluation.cached("probes", lambda: _probes(evaluation))


def _probes(evaluation: Evaluation) -> Probes:
    backend = next(iter(evaluation.models.values()))
    prompt, continued = (round(seconds * backend.frame_rate) for seconds in (PROMPT_SECONDS, CONTINUED_SECONDS))
    paraphrased = list(_paraphrased(evaluation))
    prompts: dict[ClipSet, list[Variant]] = {}
    for clips in TARGETS:
        offsets = OFFSETS if clips == "forget" else CHANCE_OFFSETS
        prompts[clips] = list(_offsets(evaluation, evaluation.clips.get(clips, ()), offsets, prompt, continued))
    prompts["forget"] += [_cut(variant, 0, prompt + continued) for variant in paraphrased]
    sets: dict[ClipSet, Sequence[Clip]] = {
        clips: [variant.clip for variant in variants] for clips, variants in prompts.items()
    }
    models = {role: evaluation.models[role] for role in available_roles(evaluation, *MODELS)}
    captions: dict[ClipSet, Sequence[Clip]] = {"forget": [variant.clip for variant in paraphrased]}
    return Probes(
        evaluation.derive(models=models, clips=sets) if prompts["forget"] else evaluation,
        prompts,
        evaluation.derive(models=models, clips=captions) if paraphrased else None,
        paraphrased,
    )


def _paraphrased(evaluation: Evaluation) -> Iterator[Variant]:
    for clip in first_windows(evaluation.clips["forget"]):
        paraphrase = random_paraphrase(clip.caption, f"{evaluation.seed} {clip.track}")
        if paraphrase is not None:
            name, caption = paraphrase
            yield Variant("paraphrased", clip, Clip(tag(clip.track, f"paraphrased: {name}"), caption, clip.codes))


def _offsets(
    evaluation: Evaluation, clips: Sequence[Clip], count: int, prompt: int, continued: int
) -> Iterator[Variant]:
    """Segments that start at random frames of a track's windows, one in each of `count` equal parts of the track."""
    for track, windows in sorted(windows_by_track(clips).items()):
        # A prompt may start after frame 0, with at least a prompt's length of music after it.
        starts = [(clip, frame) for clip in windows for frame in range(1, clip.codes.shape[-1] - 2 * prompt + 1)]
        rng = random.Random(f"{evaluation.seed} {track}")
        for part in range(min(count, len(starts))):
            edges = [len(starts) * edge // min(count, len(starts)) for edge in (part, part + 1)]
            clip, frame = starts[rng.randrange(*edges)]
            whole = Variant("offset", clip, Clip(tag(track, f"offset {part}: frame {frame}"), clip.caption, clip.codes))
            yield _cut(whole, frame, prompt + continued)


def _cut(variant: Variant, frame: int, frames: int) -> Variant:
    """The variant's frames [frame, frame + frames)."""

    def segment(clip: Clip) -> Clip:
        return Clip(clip.track, clip.caption, clip.codes[:, frame : frame + frames])

    return Variant(variant.name, segment(variant.original), segment(variant.clip), variant.tempo)


def probe_shares(evaluation: Evaluation, model: Role, clips: ClipSet, name: str) -> dict[str, float]:
    """Each track's highest share of right tokens over its prompts of one kind ("offset", "paraphrased")."""
    probing = probes(evaluation)
    tagged = evaluation.cached(
        ("probes", "shares", model, clips),
        lambda: variant_shares(probing.evaluation, model, probing.prompts[clips], PROMPT_SECONDS, clips),
    )
    tags = {variant.clip.track for variant in probing.prompts[clips] if variant.name == name}
    return strongest({track: share for track, share in tagged.items() if track in tags}, max)


class VerbatimOffset(Metric):
    """Share of tracks that are continued verbatim from one second of their middle, with their caption.

    As `verbatim`, from three positions of each forget track (one of each holdout track), one in each third, drawn with
    the evaluation's seed. It detects models that have unlearned only the beginning of a track. A track's value is the
    best of its positions, over the two seconds that follow.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        yield from rows_by_model(evaluation, "verbatim_offset", TARGETS, MODELS, _offset_rows, unit="share")


def _offset_rows(evaluation: Evaluation, model: Role, clips: ClipSet) -> Iterator[Result]:
    tracks = probe_shares(evaluation, model, clips, "offset")
    if tracks:
        yield verbatim_row("verbatim_offset", model, clips, tracks, PROMPT_SECONDS)
    else:
        why = f"no {clips} track is longer than two prompts of {PROMPT_SECONDS:g} s"
        yield unmeasured("verbatim_offset", model, clips, why, unit="share")


class ParaphrasedOnce(Metric):
    """NLL and verbatim continuations of each forget track under one random paraphrase of its caption.

    A typing error, another order, fewer words, … (`paraphrases.random_paraphrase`, with the evaluation's seed). This
    detects filters on exact captions. Rows: `paraphrased_once_nll`, `_verbatim` (with a second of audio) and
    `_verbatim_caption` (without audio). `details["captions"]` has the paraphrased captions.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        probing = probes(evaluation)
        paraphrase = probing.caption_evaluation
        if paraphrase is None:
            why = "no caption can be paraphrased"
            yield unmeasured("paraphrased_once_nll", "unlearned", "forget", why)
            return
        captions = {variant.original.track: variant.clip.caption for variant in probing.paraphrased}
        for model in available_roles(evaluation, *MODELS):
            backend = evaluation.backend(model)
            nll = strongest(paraphrase.nll(model, "forget"), min)
            yield mean_row(
                "paraphrased_once_nll",
                model,
                "forget",
                nll,
                evaluation,
                unit=backend.unit,
                details={"captions": captions},
            )
            reason = no_continuations(paraphrase, model, "forget")
            if reason:
                for name in ("verbatim", "verbatim_caption"):
                    yield unmeasured(f"paraphrased_once_{name}", model, "forget", reason, unit="share")
                continue
            shares = probe_shares(evaluation, model, "forget", "paraphrased")
            yield verbatim_row("paraphrased_once_verbatim", model, "forget", shares, PROMPT_SECONDS)
            from_caption = strongest(variant_shares(paraphrase, model, probing.paraphrased, 0.0), max)
            yield verbatim_row("paraphrased_once_verbatim_caption", model, "forget", from_caption, 0.0)
