"""What a model knows of the tracks without their captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from encore.api import Clip, ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.memorization.off_target import PASSAGE_SECONDS, Generation, passage_row
from encore.metrics.memorization.probes import CONTINUED_SECONDS, first_windows
from encore.metrics.memorization.verbatim import MODELS, PROMPT_SECONDS, best_shares, replay_row
from encore.metrics.robustness.variants import strongest, tag
from encore.metrics.rows import by_track, given, mean_row, no_clips, not_finite, unmeasured

DRAWS = 8  # generations from nothing, each way
DRAW_SECONDS = 1.5 * PASSAGE_SECONDS
BATCH = 32  # rows a generation
EMPTY = ""
WAYS: Mapping[str, float] = {"no caption": 0.0, "empty caption": 1.0}  # -> guidance, beside an empty caption
SETS: tuple[ClipSet, ...] = ("forget", "holdout")


class Unconditional(Metric):
    """NLL, continuations and generations without a caption: with none at all, and with an empty text.

    A model that has unlearned to answer a caption may still know the music. Rows, of forget and holdout:

    - `unconditional_nll`: each track's NLL, the lower of both ways.
    - `unconditional_verbatim`: share of tracks that are continued verbatim from their first second (as `verbatim`, of
      the first window; two seconds are compared).
    - `unconditional_generation`: share of tracks of which 2 s come out verbatim, at any place, in one of eight samples
      each way (as `verbatim_elsewhere`).

    A model without tokens has an `unconditional_nll` alone: its loss with an empty caption.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for clips in SETS:
            if not evaluation.clips.get(clips):
                yield no_clips("unconditional_nll", clips)
                continue
            for model in given(evaluation, *MODELS):
                backend = evaluation.backend(model)
                tagged = _nll(evaluation, model, clips)
                yield mean_row(
                    "unconditional_nll", model, clips, strongest(tagged, min), evaluation, unit=backend.unit,
                    direction="gold" if clips == "forget" else "base",
                )  # fmt: skip
                why = not_finite(evaluation, model, clips) if backend.has_tokens else "the model has no tokens"
                if why:
                    for name in ("verbatim", "generation"):
                        yield unmeasured(f"unconditional_{name}", model, clips, why, unit="share")
                    continue
                tracks = _continued(evaluation, model, clips)
                yield replay_row("unconditional_verbatim", model, clips, tracks, PROMPT_SECONDS)
                yield passage_row("unconditional_generation", evaluation, model, clips, _drawn(evaluation, model))


def _nll(evaluation: Evaluation, model: Role, clips: ClipSet) -> dict[str, float]:
    """NLL of each track, tagged with the way."""
    empty = evaluation.cached(("unconditional", "empty"), lambda: _with_empty_captions(evaluation))
    found = {tag(track, "empty caption"): nll for track, nll in empty.nll(model, clips).items()}
    if evaluation.backend(model).has_tokens:
        logprobs = evaluation.token_logprobs(model, clips, unconditional=True)
        totals = [-float(clip.double().sum()) for clip in logprobs]
        counts = [int(mask.sum()) for mask in evaluation.token_mask(clips)]
        found |= {
            tag(track, "no caption"): nll
            for track, nll in by_track(evaluation.clips[clips], totals, counts).items()
        }  # fmt: skip
    return found


def _with_empty_captions(evaluation: Evaluation) -> Evaluation:
    sets: dict[ClipSet, Sequence[Clip]] = {
        clips: [Clip(clip.track, EMPTY, clip.codes) for clip in evaluation.clips.get(clips, ())] for clips in SETS
    }
    return evaluation.derive(models={role: evaluation.models[role] for role in given(evaluation, *MODELS)}, clips=sets)


def _continued(evaluation: Evaluation, model: Role, clips: ClipSet) -> dict[str, float]:
    """Share of right first-codebook tokens after the first second of each track, the higher of both ways."""
    prompt, frames = _prompt(evaluation, model)
    chosen = _prompts(evaluation, model)
    generated = _generated(evaluation, model)
    found = []
    for way in WAYS:
        for (name, clip), codes in zip(chosen, generated[f"prompted {way}"], strict=True):
            if name == clips:
                right = codes[0, prompt:] == clip.codes[0, prompt:frames].cpu()
                found.append((tag(clip.track, way), int(right.sum()), len(right)))
    return strongest(best_shares(found), max)


def _drawn(evaluation: Evaluation, model: Role) -> list[Generation]:
    generated = _generated(evaluation, model)
    return [Generation(way, codes[0]) for way in WAYS for codes in generated[f"drawn {way}"]]


def _prompt(evaluation: Evaluation, model: Role) -> tuple[int, int]:
    """Frames of a prompt, and of a prompt and what follows it."""
    rate = evaluation.backend(model).frame_rate
    return round(PROMPT_SECONDS * rate), round((PROMPT_SECONDS + CONTINUED_SECONDS) * rate)


def _prompts(evaluation: Evaluation, model: Role) -> list[tuple[ClipSet, Clip]]:
    """The first window of each forget and holdout track that is longer than the prompt, shortest first."""
    prompt, frames = _prompt(evaluation, model)
    found = [(name, clip) for name in SETS for clip in first_windows(evaluation.clips.get(name, ()))]
    cut = [(name, Clip(clip.track, EMPTY, clip.codes[:, :frames])) for name, clip in found]
    return sorted((pair for pair in cut if pair[1].codes.shape[-1] > prompt), key=lambda pair: pair[1].codes.shape[-1])


def _generated(evaluation: Evaluation, model: Role) -> dict[str, list[Tensor]]:
    """Codes [K, T] of both ways: `prompted WAY`, one a prompt, and `drawn WAY`."""
    return evaluation.cached(("unconditional", "generated", model), lambda: _kept(evaluation, model))


def _kept(evaluation: Evaluation, model: Role) -> dict[str, list[Tensor]]:
    chosen = [clip for _, clip in _prompts(evaluation, model)]
    made = evaluation.cached_on_disk(
        ("unconditional", DRAWS, DRAW_SECONDS, CONTINUED_SECONDS),
        lambda: {
            f"{name}.{i:06d}": codes
            for name, rows in _generate(evaluation, model, chosen).items()
            for i, codes in enumerate(rows)
        },
        models=[model], clips=chosen,
    )  # fmt: skip
    found: dict[str, list[Tensor]] = {f"{kind} {way}": [] for kind in ("prompted", "drawn") for way in WAYS}
    for name in sorted(made):
        found[name.partition(".")[0]].append(made[name])
    return found


@torch.no_grad()
def _generate(evaluation: Evaluation, model: Role, chosen: Sequence[Clip]) -> dict[str, list[Tensor]]:
    backend = evaluation.backend(model)
    prompt, _ = _prompt(evaluation, model)
    found: dict[str, list[Tensor]] = {}
    for way, guidance in WAYS.items():
        continued: list[Tensor] = []
        for start in range(0, len(chosen), BATCH):
            piece = chosen[start : start + BATCH]
            lengths = [clip.codes.shape[-1] for clip in piece]
            codes = backend.generate(
                [EMPTY] * len(piece), prompt=torch.stack([clip.codes[:, :prompt] for clip in piece]).to(backend.device),
                seconds=lengths[-1] / backend.frame_rate, seed=evaluation.seed, temperature=0.0, guidance=guidance,
            )  # fmt: skip
            continued += [row[:, :length].cpu() for row, length in zip(codes, lengths, strict=True)]
        found[f"prompted {way}"] = continued
        seconds = min(DRAW_SECONDS, backend.max_frames / backend.frame_rate)
        drawn = backend.generate([EMPTY] * DRAWS, seconds=seconds, seed=evaluation.seed, guidance=guidance)
        found[f"drawn {way}"] = [row.cpu() for row in drawn]
    return found
