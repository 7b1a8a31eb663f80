"""Memorisation without captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from encore.api import Clip, ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.memorization.off_target import PASSAGE_SECONDS, Generation, passage_row
from encore.metrics.memorization.probes import CONTINUED_SECONDS
from encore.metrics.memorization.verbatim import MODELS, PROMPT_SECONDS, best_shares, verbatim_row
from encore.metrics.robustness.variants import strongest, tag
from encore.metrics.rows import (
    available_roles,
    by_track,
    first_windows,
    mean_row,
    no_clips,
    no_continuations,
    unmeasured,
)

SAMPLES = 8  # unprompted generations per condition
SAMPLE_SECONDS = 1.5 * PASSAGE_SECONDS
BATCH = 32  # rows per generation
EMPTY = ""
CONDITIONS: Mapping[str, float] = {"no caption": 0.0, "empty caption": 1.0}  # -> guidance, with an empty caption
SETS: tuple[ClipSet, ...] = ("forget", "holdout")


class Unconditional(Metric):
    """NLL, continuations and generations in two conditions: unconditional, and with an empty caption.

    A model that no longer responds to a caption may still know the music. Rows, of forget and holdout:

    - `unconditional_nll`: each track's NLL, the lower of both conditions.
    - `unconditional_verbatim`: share of tracks that are continued verbatim from their first second (as `verbatim`, of
      the first window; two seconds are compared).
    - `unconditional_generation`: share of tracks of which a 2 s passage appears verbatim, at any position, in one of
      eight samples per condition (as `verbatim_elsewhere`).

    A model without tokens has only `unconditional_nll`, its loss with an empty caption.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for clips in SETS:
            if not evaluation.clips.get(clips):
                yield no_clips("unconditional_nll", clips)
                continue
            for model in available_roles(evaluation, *MODELS):
                backend = evaluation.backend(model)
                tagged = _nll(evaluation, model, clips)
                yield mean_row(
                    "unconditional_nll", model, clips, strongest(tagged, min), evaluation, unit=backend.unit,
                    direction="gold" if clips == "forget" else "base",
                )  # fmt: skip
                if why := no_continuations(evaluation, model, clips):
                    for name in ("verbatim", "generation"):
                        yield unmeasured(f"unconditional_{name}", model, clips, why, unit="share")
                    continue
                tracks = _right_shares(evaluation, model, clips)
                yield verbatim_row("unconditional_verbatim", model, clips, tracks, PROMPT_SECONDS)
                generated = _generated(evaluation, model)
                samples = [Generation(name, codes[0]) for name in CONDITIONS for codes in generated[f"drawn {name}"]]
                yield passage_row("unconditional_generation", evaluation, model, clips, samples)


def _nll(evaluation: Evaluation, model: Role, clips: ClipSet) -> dict[str, float]:
    """NLL of each track, tagged with the condition."""
    empty = evaluation.cached(("unconditional", "empty"), lambda: _with_empty_captions(evaluation))
    nlls = {tag(track, "empty caption"): nll for track, nll in empty.nll(model, clips).items()}
    if evaluation.backend(model).has_tokens:
        logprobs = evaluation.token_logprobs(model, clips, unconditional=True)
        totals = [-float(clip.double().sum()) for clip in logprobs]
        counts = [int(mask.sum()) for mask in evaluation.token_mask(clips)]
        without = by_track(evaluation.clips[clips], totals, counts)
        nlls |= {tag(track, "no caption"): nll for track, nll in without.items()}
    return nlls


def _with_empty_captions(evaluation: Evaluation) -> Evaluation:
    sets: dict[ClipSet, Sequence[Clip]] = {
        clips: [Clip(clip.track, EMPTY, clip.codes) for clip in evaluation.clips.get(clips, ())] for clips in SETS
    }
    return evaluation.derive(
        models={role: evaluation.models[role] for role in available_roles(evaluation, *MODELS)}, clips=sets
    )


def _right_shares(evaluation: Evaluation, model: Role, clips: ClipSet) -> dict[str, float]:
    """Share of right first-codebook tokens after the first second of each track, the higher of both conditions."""
    prompt, frames = _prompt_frames(evaluation, model)
    prompts = _prompts(evaluation, model)
    generated = _generated(evaluation, model)
    counts = []
    for condition in CONDITIONS:
        for (name, clip), codes in zip(prompts, generated[f"prompted {condition}"], strict=True):
            if name == clips:
                right = codes[0, prompt:] == clip.codes[0, prompt:frames].cpu()
                counts.append((tag(clip.track, condition), int(right.sum()), len(right)))
    return strongest(best_shares(counts), max)


def _prompt_frames(evaluation: Evaluation, model: Role) -> tuple[int, int]:
    """Frames of a prompt, and of a prompt with its continuation."""
    rate = evaluation.backend(model).frame_rate
    return round(PROMPT_SECONDS * rate), round((PROMPT_SECONDS + CONTINUED_SECONDS) * rate)


def _prompts(evaluation: Evaluation, model: Role) -> list[tuple[ClipSet, Clip]]:
    """The first window of each forget and holdout track that is longer than the prompt, shortest first."""
    prompt, frames = _prompt_frames(evaluation, model)
    windows = [(name, clip) for name in SETS for clip in first_windows(evaluation.clips.get(name, ()))]
    cut = [(name, Clip(clip.track, EMPTY, clip.codes[:, :frames])) for name, clip in windows]
    return sorted((pair for pair in cut if pair[1].codes.shape[-1] > prompt), key=lambda pair: pair[1].codes.shape[-1])


def _generated(evaluation: Evaluation, model: Role) -> dict[str, list[Tensor]]:
    """Codes [K, T]: `prompted CONDITION`, one per prompt, and `drawn CONDITION`."""
    return evaluation.cached(("unconditional", "generated", model), lambda: _load_or_generate(evaluation, model))


def _load_or_generate(evaluation: Evaluation, model: Role) -> dict[str, list[Tensor]]:
    prompts = [clip for _, clip in _prompts(evaluation, model)]
    tensors = evaluation.cached_on_disk(
        ("unconditional", SAMPLES, SAMPLE_SECONDS, CONTINUED_SECONDS),
        lambda: {
            f"{name}.{i:06d}": codes
            for name, rows in _generate(evaluation, model, prompts).items()
            for i, codes in enumerate(rows)
        },
        models=[model], clips=prompts,
    )  # fmt: skip
    generated: dict[str, list[Tensor]] = {f"{kind} {name}": [] for kind in ("prompted", "drawn") for name in CONDITIONS}
    for name in sorted(tensors):
        generated[name.partition(".")[0]].append(tensors[name])
    return generated


@torch.no_grad()
def _generate(evaluation: Evaluation, model: Role, prompts: Sequence[Clip]) -> dict[str, list[Tensor]]:
    backend = evaluation.backend(model)
    prompt, _ = _prompt_frames(evaluation, model)
    generated: dict[str, list[Tensor]] = {}
    for condition, guidance in CONDITIONS.items():
        continued: list[Tensor] = []
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            lengths = [clip.codes.shape[-1] for clip in batch]
            codes = backend.generate(
                [EMPTY] * len(batch), prompt=torch.stack([clip.codes[:, :prompt] for clip in batch]).to(backend.device),
                seconds=lengths[-1] / backend.frame_rate, seed=evaluation.seed, temperature=0.0, guidance=guidance,
            )  # fmt: skip
            continued += [row[:, :length].cpu() for row, length in zip(codes, lengths, strict=True)]
        generated[f"prompted {condition}"] = continued
        seconds = min(SAMPLE_SECONDS, backend.max_frames / backend.frame_rate)
        samples = backend.generate([EMPTY] * SAMPLES, seconds=seconds, seed=evaluation.seed, guidance=guidance)
        generated[f"drawn {condition}"] = [row.cpu() for row in samples]
    return generated
