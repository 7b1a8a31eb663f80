"""Attack: the difference between base and the unlearned model, amplified."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from encore.api import Batch, Clip, Evaluation, Metric, Result, Role
from encore.metrics.memorization.verbatim import MATCH, PROMPT_SECONDS, verbatim_row
from encore.metrics.rows import available_roles, by_track, mean_row, not_finite, unmeasured, windows_by_track

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)  # 0 is the unlearned model, 1 is base; above 1 the attack
ATTACK = tuple(weight for weight in WEIGHTS if weight >= 1)
EXCERPTS = 3  # of each forget track
SECONDS = 3.0  # of an excerpt, prompt included


class ReversedGuidance(Metric):
    """NLL and right codes of excerpts of the forget tracks under base, guided away from the unlearned model.

    An attacker who has the models before and after unlearning (MusicGen's weights are public) samples from

        log p_w = log p_after + w (log p_before - log p_after) - log Z;  p_0 is the model after, p_1 the one before

    with w > 1 (reversed model guidance, Wu et al., arXiv 2505.24379; without their filter of tokens). What a model was
    made to avoid stands out in the difference, so that suppressing tracks reveals more of them than retraining does.
    Gold in the place of the unlearned model is the baseline, and reveals some too, as the paper finds.

    Base alone generates memorised windows, and guidance can add nothing there. So the clips are excerpts from random
    places of each track, three of three seconds, which base knows less well. All figures are given the true past.
    `reversed_guidance_nll` is a track's mean NLL over its excerpts, and `reversed_guidance_predicted` the share of
    tracks one of whose excerpts has at least 80 % right first-codebook tokens after its first second; both at the one
    w ≥ 1 that is best for the attacker over all tracks ("weight" in `details`). `details` also have the mean NLL
    ("nll"), the share of right tokens of the best excerpt ("right") and of verbatim tracks ("verbatim") at each of
    "weights". Figures at w = 1 are base's own.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        models = available_roles(evaluation, "unlearned", "gold", "gold2")
        if not models:
            why = "there is no model to guide base away from"
            yield unmeasured("reversed_guidance_nll", "unlearned", "forget", why, unit="nats/token")
        clips = excerpts(evaluation)
        for model in models:
            reason = not_finite(evaluation, model, "forget") or not_finite(evaluation, "base", "forget")
            if not clips:
                reason = f"no forget track is longer than {SECONDS:g} s"
            if reason:
                for name, unit in (("nll", "nats/token"), ("predicted", "share")):
                    yield unmeasured(f"reversed_guidance_{name}", model, "forget", reason, unit=unit)
                continue
            yield from _rows(evaluation, model, clips)


def _rows(evaluation: Evaluation, model: Role, clips: Sequence[Clip]) -> Iterator[Result]:
    guided = evaluation.cached_on_disk(
        ("reversed_guidance", *WEIGHTS, PROMPT_SECONDS), lambda: _guided(evaluation, model, clips),
        models=["base", model], clips=clips,
    )  # fmt: skip
    nll = [by_track(clips, totals.tolist(), guided["tokens"].tolist()) for totals in guided["nll"]]
    right = [_best(clips, shares.tolist()) for shares in guided["right"]]
    curves = {
        "weights": list(WEIGHTS),
        "nll": [_mean(tracks) for tracks in nll],
        "right": [_mean(tracks) for tracks in right],
        "verbatim": [_mean({track: float(share >= MATCH) for track, share in tracks.items()}) for tracks in right],
    }
    attack = [i for i, weight in enumerate(WEIGHTS) if weight in ATTACK]
    lowest = min(attack, key=lambda i: curves["nll"][i])
    yield mean_row(
        "reversed_guidance_nll", model, "forget", nll[lowest], evaluation, unit="nats/token", direction="higher",
        details={**curves, "weight": WEIGHTS[lowest]},
    )  # fmt: skip
    most = max(attack, key=lambda i: (curves["verbatim"][i], curves["right"][i]))
    yield verbatim_row(
        "reversed_guidance_predicted", model, "forget", right[most], PROMPT_SECONDS,
        details={"weight": WEIGHTS[most]},
    )  # fmt: skip


def excerpts(evaluation: Evaluation) -> list[Clip]:
    """Excerpts of `SECONDS` of each forget track, one from a random frame of each third; none from its first frame."""
    return evaluation.cached("reversed_guidance_excerpts", lambda: _excerpts(evaluation))


def _excerpts(evaluation: Evaluation) -> list[Clip]:
    frames = round(SECONDS * next(iter(evaluation.models.values())).frame_rate)
    clips = []
    for track, windows in sorted(windows_by_track(evaluation.clips["forget"]).items()):
        starts = [(clip, frame) for clip in windows for frame in range(1, clip.codes.shape[-1] - frames + 1)]
        rng, parts = random.Random(f"{evaluation.seed} {track}"), min(EXCERPTS, len(starts))
        for part in range(parts):
            clip, frame = starts[rng.randrange(*(len(starts) * edge // parts for edge in (part, part + 1)))]
            clips.append(Clip(track, clip.caption, clip.codes[:, frame : frame + frames]))
    return clips


@torch.no_grad()
def _guided(evaluation: Evaluation, model: Role, clips: Sequence[Clip]) -> dict[str, Tensor]:
    """Summed NLL and share of right first-codebook tokens after the prompt, [weights, N] each; token counts [N]."""
    before, after = evaluation.backend("base"), evaluation.backend(model)
    prompt = round(PROMPT_SECONDS * before.frame_rate)
    parts: dict[str, list[Tensor]] = {"nll": [], "right": [], "tokens": []}
    for part in evaluation.batches(clips):
        batch = Batch.of(part, before.device)
        codes, mask = batch.codes[..., None], before.token_mask(batch)
        first, second = (backend.logits(batch).float().log_softmax(-1) for backend in (before, after))
        nll, right = [], []
        for weight in WEIGHTS:
            logp = torch.lerp(second, first, weight)
            true = logp.gather(-1, codes)[..., 0] - logp.logsumexp(-1)
            nll.append(-torch.where(mask, true, 0.0).double().sum((1, 2)).cpu())  # NaN where masked, in some backends
            hits = ((logp[:, 0].argmax(-1) == batch.codes[:, 0]) & mask[:, 0])[:, prompt:]
            right.append((hits.sum(-1) / mask[:, 0, prompt:].sum(-1).clamp(min=1)).cpu())
        parts["nll"].append(torch.stack(nll))
        parts["right"].append(torch.stack(right))
        parts["tokens"].append(mask.sum((1, 2)).cpu())
    return {name: torch.cat(tensors, -1) for name, tensors in parts.items()}


def _best(clips: Sequence[Clip], shares: Sequence[float]) -> dict[str, float]:
    """The highest share of each track's excerpts."""
    best: dict[str, float] = {}
    for clip, share in zip(clips, shares, strict=True):
        best[clip.track] = max(share, best.get(clip.track, 0.0))
    return best


def _mean(tracks: dict[str, float]) -> float:
    return sum(tracks.values()) / len(tracks)
