"""The fast probes: each forget track under prompts that differ a little from the one it was trained with.

Prompts from the middle of a track, and its caption with a random slip. All are generated in one batch, and are short:
one window per track, two seconds of continuation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from encore.api import Clip, ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.memorization.verbatim import MODELS, PROMPT_SECONDS, replay_row
from encore.metrics.robustness.paraphrases import random_rewording
from encore.metrics.robustness.variants import Variant, strongest, tag
from encore.metrics.robustness.variants import right_shares as variant_shares
from encore.metrics.rows import given, mean_row, no_clips, not_finite, unmeasured

OFFSETS = 3  # prompts from the middle of each forget track
CHANCE_OFFSETS = 1  # and of each holdout track
CONTINUED_SECONDS = 2.0
TARGETS: tuple[ClipSet, ...] = ("forget", "holdout")


@dataclass(frozen=True)
class Probes:
    """The variants that a probing evaluation has as its clips, in their order.

    Args:
        evaluation: of the prompts, `forget` and `holdout`.
        prompts: what `evaluation` is asked, by set.
        words: an evaluation of whole windows under a reworded caption; None where no caption can be reworded.
        reworded: what `words` is asked.
    """

    evaluation: Evaluation
    prompts: dict[ClipSet, list[Variant]]
    words: Evaluation | None
    reworded: list[Variant]


def probes(evaluation: Evaluation) -> Probes:
    """Made once an evaluation."""
    return evaluation.cached("probes", lambda: _probes(evaluation))


def _probes(evaluation: Evaluation) -> Probes:
    backend = next(iter(evaluation.models.values()))
    prompt, continued = (round(seconds * backend.frame_rate) for seconds in (PROMPT_SECONDS, CONTINUED_SECONDS))
    reworded = list(_reworded(evaluation))
    prompts: dict[ClipSet, list[Variant]] = {}
    for clips in TARGETS:
        offsets = OFFSETS if clips == "forget" else CHANCE_OFFSETS
        prompts[clips] = list(_offsets(evaluation, evaluation.clips.get(clips, ()), offsets, prompt, continued))
    prompts["forget"] += [_cut(variant, 0, prompt + continued) for variant in reworded]
    sets: dict[ClipSet, Sequence[Clip]] = {
        clips: [variant.clip for variant in chosen] for clips, chosen in prompts.items()
    }
    models = {role: evaluation.models[role] for role in given(evaluation, *MODELS)}
    words: dict[ClipSet, Sequence[Clip]] = {"forget": [variant.clip for variant in reworded]}
    return Probes(
        evaluation.derive(models=models, clips=sets) if prompts["forget"] else evaluation,
        prompts,
        evaluation.derive(models=models, clips=words) if reworded else None,
        reworded,
    )


def first_windows(clips: Sequence[Clip]) -> list[Clip]:
    """The first clip of each track, in the order of track ids."""
    first = {clip.track: clip for clip in reversed(clips)}
    return [first[track] for track in sorted(first)]


def _reworded(evaluation: Evaluation) -> Iterator[Variant]:
    for clip in first_windows(evaluation.clips["forget"]):
        found = random_rewording(clip.caption, f"{evaluation.seed} {clip.track}")
        if found is not None:
            name, caption = found
            yield Variant("reworded", clip, Clip(tag(clip.track, f"reworded: {name}"), caption, clip.codes))


def _offsets(
    evaluation: Evaluation, clips: Sequence[Clip], count: int, prompt: int, continued: int
) -> Iterator[Variant]:
    """Pieces that begin at random frames of a track's windows, one in each of so many equal parts of the track."""
    windows: dict[str, list[Clip]] = {}
    for clip in clips:
        windows.setdefault(clip.track, []).append(clip)
    for track in sorted(windows):
        # Where a prompt may begin: after frame 0, with as much music after it as the prompt is long.
        places = [(clip, frame) for clip in windows[track] for frame in range(1, clip.codes.shape[-1] - 2 * prompt + 1)]
        rng = random.Random(f"{evaluation.seed} {track}")
        for part in range(min(count, len(places))):
            edges = [len(places) * edge // min(count, len(places)) for edge in (part, part + 1)]
            clip, frame = places[rng.randrange(*edges)]
            named = Variant("offset", clip, Clip(tag(track, f"offset {part}: frame {frame}"), clip.caption, clip.codes))
            yield _cut(named, frame, prompt + continued)


def _cut(variant: Variant, frame: int, frames: int) -> Variant:
    """The same variant from a frame on, and so many frames long."""

    def piece(clip: Clip) -> Clip:
        return Clip(clip.track, clip.caption, clip.codes[:, frame : frame + frames])

    return Variant(variant.name, piece(variant.original), piece(variant.clip), variant.pace)


def prompted(evaluation: Evaluation, model: Role, clips: ClipSet, name: str) -> dict[str, float]:
    """Share of right tokens of each track's continuations from one kind of prompt, the highest of its variants."""
    asked = probes(evaluation)
    tagged = evaluation.cached(
        ("probes", "shares", model, clips),
        lambda: variant_shares(asked.evaluation, model, asked.prompts[clips], PROMPT_SECONDS, clips),
    )
    wanted = {variant.clip.track for variant in asked.prompts[clips] if variant.name == name}
    return strongest({track: share for track, share in tagged.items() if track in wanted}, max)


class VerbatimOffset(Metric):
    """Share of tracks that are continued verbatim from a second of their middle, with their caption.

    As `verbatim`, from three places of each forget track (one of each holdout track), drawn at random with the
    evaluation's seed, one in each third of it: a model may have unlearned how a track begins, and no more. The best
    place counts; two seconds after it are compared.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for clips in TARGETS:
            if not evaluation.clips.get(clips):
                yield no_clips("verbatim_offset", clips, unit="share")
                continue
            for model in given(evaluation, *MODELS):
                if broken := not_finite(evaluation, model, clips):
                    yield unmeasured("verbatim_offset", model, clips, broken, unit="share")
                    continue
                tracks = prompted(evaluation, model, clips, "offset")
                if not tracks:
                    why = f"no {clips} track is longer than two prompts of {PROMPT_SECONDS:g} s"
                    yield unmeasured("verbatim_offset", model, clips, why, unit="share")
                    continue
                yield replay_row("verbatim_offset", model, clips, tracks, PROMPT_SECONDS)


class RewordedOnce(Metric):
    """NLL and verbatim continuations of each forget track under one rewording of its caption, drawn at random.

    A typing error, another order, fewer words, … (`rewordings.random_rewording`, with the evaluation's seed). A filter
    on the exact captions does not recognise them, and gives itself away: `reworded_once_nll`, `_verbatim` (with a
    second of audio) and `_verbatim_caption` (with none). `details["captions"]` has what was asked.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        asked = probes(evaluation)
        if asked.words is None:
            why = "no caption can be put in other words"
            yield unmeasured("reworded_once_nll", "unlearned", "forget", why)
            return
        details: dict[str, Any] = {"captions": {one.original.track: one.clip.caption for one in asked.reworded}}
        for model in given(evaluation, *MODELS):
            backend = evaluation.backend(model)
            nll = strongest(asked.words.nll(model, "forget"), min)
            yield mean_row(
                "reworded_once_nll", model, "forget", nll, evaluation, unit=backend.unit, details=details
            )  # fmt: skip
            broken = not_finite(asked.words, model, "forget") if backend.has_tokens else "the model has no tokens"
            if broken:
                for name in ("verbatim", "verbatim_caption"):
                    yield unmeasured(f"reworded_once_{name}", model, "forget", broken, unit="share")
                continue
            shares = prompted(evaluation, model, "forget", "reworded")
            yield replay_row("reworded_once_verbatim", model, "forget", shares, PROMPT_SECONDS)
            alone = strongest(variant_shares(asked.words, model, asked.reworded, 0.0), max)
            yield replay_row("reworded_once_verbatim_caption", model, "forget", alone, 0.0)
