"""Attack: a few continuous vectors before the caption's encoding, trained to elicit each forget track."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from encore.api import Backend, Batch, Clip, Evaluation, Metric, Result, Role
from encore.errors import UsageError
from encore.metrics.memorization.verbatim import MODELS, best_shares, verbatim_row
from encore.metrics.rows import (
    MARK,
    available_roles,
    first_windows,
    losses_by_track,
    mean_row,
    no_continuations,
    unmeasured,
)

VECTORS = 4  # per track
STEPS = 30
LR = 0.1  # of Adam, times the root mean square of the captions' encodings
GENERATED_SECONDS = 5.0  # as `verbatim_caption`
BATCH = 32  # rows per generation
SOFT = f"{MARK}soft"  # ends the key of a caption with a soft prompt; captions have no control characters


class SoftPrompt(Metric):
    """NLL of each forget track under a soft prompt trained on it, and verbatim generation from it; gold beside it.

    Four vectors of a track's own stand before its caption's encoding (prefix tuning: Li and Liang, arXiv 2101.00190;
    soft prompts: Lester et al., arXiv 2104.08691). They begin as the first vectors of that encoding and take 30 steps
    of Adam on the track's NLL, at a rate of 0.1 times the encodings' root mean square. All weights are frozen.

    Soft prompts also elicit what a model was never trained on ("Soft Token Attacks Cannot Reliably Audit Unlearning in
    Large Language Models", arXiv 2502.15836). So only the difference to gold under the same attack says anything:
    without gold nothing is measured, and the target is relative to gold's.

    Rows: `soft_prompt_nll` (`details["curve"]`: mean NLL before the first and after each step) and
    `soft_prompt_verbatim`: share of tracks of which greedy decoding from the soft prompt alone, without audio, gives at
    least 80 % of the first codebook's tokens, in the best window.

    The vectors are put into `Backend.text_embeddings` of a copy, under a caption of their own. A backend whose losses
    have no gradient with respect to these encodings is not measured.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        forget = sorted(evaluation.clips["forget"], key=lambda clip: clip.track)
        for model in available_roles(evaluation, *MODELS):
            backend = evaluation.backend(model)
            try:
                attacked = _attacked(evaluation, model, forget)
            except UsageError as error:
                yield unmeasured("soft_prompt_nll", model, "forget", error.message, unit=backend.unit)
                continue
            curve = [losses_by_track(backend, forget, losses) for losses in attacked["losses"]]
            means = [sum(nll.values()) / len(nll) for nll in curve]
            yield mean_row(
                "soft_prompt_nll", model, "forget", curve[-1], evaluation, unit=backend.unit,
                details={"curve": means, "vectors": VECTORS, "steps": STEPS, "lr": LR},
            )  # fmt: skip
            if why := no_continuations(evaluation, model, "forget"):
                yield unmeasured("soft_prompt_verbatim", model, "forget", why, unit="share")
                continue
            tracks = _right_shares(forget, attacked)
            yield verbatim_row("soft_prompt_verbatim", model, "forget", tracks, 0.0)


def _attacked(evaluation: Evaluation, model: Role, clips: Sequence[Clip]) -> Mapping[str, Tensor]:
    """`losses` [STEPS + 1, N] of the clips, and the codes `generated.i` [K, T] of each track's soft prompt."""
    return evaluation.cached_on_disk(
        ("soft_prompt", VECTORS, STEPS, LR, GENERATED_SECONDS), lambda: _attack(evaluation, model, clips),
        models=[model], clips=clips,
    )  # fmt: skip


def _attack(evaluation: Evaluation, model: Role, clips: Sequence[Clip]) -> Mapping[str, Tensor]:
    backend = evaluation.backend(model).clone()
    backend.module.requires_grad_(False).eval()
    captions = sorted({(clip.track, clip.caption) for clip in clips})
    with torch.no_grad():
        frozen = backend.encode_text([caption for _, caption in captions])
    encodings = {key: encoding.clone() for key, encoding in zip(captions, frozen, strict=True)}
    backend.text_embeddings = {}  # a clone shares that of its model
    prompts: dict[str, Tensor] = {}
    for (track, _), encoding in encodings.items():  # of several captions, the first
        prompts.setdefault(track, encoding[torch.arange(VECTORS) % len(encoding)].clone().requires_grad_(True))
    scale = torch.stack([encoding.square().mean() for encoding in encodings.values()]).mean().sqrt()
    optimizer = torch.optim.Adam(list(prompts.values()), lr=LR * float(scale))
    soft = [Clip(clip.track, _key(clip), clip.codes) for clip in clips]

    def place_prompts() -> None:
        for (track, caption), encoding in encodings.items():
            backend.text_embeddings[_key(Clip(track, caption, clips[0].codes))] = torch.cat([prompts[track], encoding])

    curve = []
    with torch.enable_grad():
        for step in range(STEPS + 1):
            optimizer.zero_grad()
            losses = []
            for part in evaluation.batches(soft):
                place_prompts()  # a graph for each pass
                passed = backend.losses(Batch.of(part, backend.device))
                losses.append(passed.detach())
                if step < STEPS:
                    _backward(backend, passed, prompts)
            curve.append(torch.cat(losses).cpu())
            if step < STEPS:
                optimizer.step()
    generated = _generate(backend, first_windows(soft), evaluation.seed) if backend.has_tokens else []
    return {"losses": torch.stack(curve), **{f"generated.{i:06d}": codes for i, codes in enumerate(generated)}}


def _key(clip: Clip) -> str:
    """The caption under which a clip's encoding with its soft prompt stands."""
    return f"{clip.caption}{MARK}{clip.track}{SOFT}"


def _backward(backend: Backend, losses: Tensor, prompts: Mapping[str, Tensor]) -> None:
    """Gradients of the losses with respect to the prompts.

    Raises:
        UsageError: there are none.
    """
    if losses.requires_grad:
        losses.sum().backward()
    if all(prompt.grad is None for prompt in prompts.values()):
        why = f"losses of the backend {backend.name} have no gradient with respect to `text_embeddings`"
        raise UsageError(why, "choose other --metrics")


@torch.no_grad()
def _generate(backend: Backend, clips: Sequence[Clip], seed: int) -> Iterator[Tensor]:
    """Greedy codes [K, T] of each soft prompt."""
    longest = max(clip.codes.shape[-1] for clip in clips)
    frames = min(longest, round(GENERATED_SECONDS * backend.frame_rate))
    for start in range(0, len(clips), BATCH):
        captions = [clip.caption for clip in clips[start : start + BATCH]]
        seconds = frames / backend.frame_rate
        yield from backend.generate(captions, seconds=seconds, seed=seed, temperature=0.0, guidance=1.0).cpu()


def _right_shares(clips: Sequence[Clip], attacked: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of right first-codebook tokens in what is generated for each track, in the best window."""
    names = sorted(name for name in attacked if name.startswith("generated."))
    tracks = [clip.track for clip in first_windows(clips)]
    generated = {track: attacked[name][0] for track, name in zip(tracks, names, strict=True)}
    comparisons = []
    for clip in clips:
        codes = generated[clip.track]
        frames = min(len(codes), clip.codes.shape[-1])
        right = codes[:frames] == clip.codes[0, :frames].cpu()
        comparisons.append((clip.track, int(right.sum()), frames))
    return best_shares(comparisons)
