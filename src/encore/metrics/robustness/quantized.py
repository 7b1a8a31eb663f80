"""An attack: do the tracks come back when the weights are rounded to 8 or 4 bits?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from encore.api import Clip, ClipSet, Evaluation, Metric, Result
from encore.metrics.memorization.verbatim import MODELS, PROMPT_SECONDS, replay_row, right_shares
from encore.metrics.rows import given, mean_row, no_clips, not_finite, unmeasured

BITS = (8, 4)


class Quantised(Metric):
    """NLL and replay from 1 s on a copy whose weights are rounded: `quantised_8bit_nll`, `quantised_8bit_verbatim`, …

    Unlearning that moves each weight a little can be undone by rounding it back (Zhang et al., "Catastrophic Failure of
    LLM Unlearning via Quantization", arXiv 2410.16454). Rounding is to nearest, symmetric, with a scale for each output
    channel; the arithmetic stays in float32. Rows of retain say whether the rounded model still plays at all.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for bits in BITS:
            name = f"quantised_{bits}bit"
            for model in given(evaluation, *MODELS):
                own = evaluation.backend(model)
                copy = own.clone()
                round_weights(copy.module, bits)
                sets: dict[ClipSet, Sequence[Clip]] = {
                    clips: chosen for clips, chosen in evaluation.clips.items() if clips != "holdout"
                }
                rounded = evaluation.derive(models={model: copy}, clips=sets)
                for clips in sets:
                    if not sets[clips]:
                        yield no_clips(f"{name}_nll", clips, unit=own.unit)
                        continue
                    yield mean_row(
                        f"{name}_nll", model, clips, rounded.nll(model, clips), evaluation, unit=own.unit,
                        direction="gold" if clips == "forget" else "base",
                    )  # fmt: skip
                    why = not_finite(rounded, model, clips) if own.has_tokens else "the model has no tokens"
                    if why:
                        yield unmeasured(f"{name}_verbatim", model, clips, why, unit="share")
                        continue
                    shares = right_shares(rounded, model, clips, PROMPT_SECONDS)
                    yield replay_row(f"{name}_verbatim", model, clips, shares, PROMPT_SECONDS)


@torch.no_grad()
def round_weights(module: nn.Module, bits: int) -> None:
    """Round every matrix (and larger) among a module's parameters in place; vectors (biases, norms) stay."""
    for weight in module.parameters():
        if weight.dim() >= 2:
            weight.copy_(rounded(weight, bits))


def rounded(weight: Tensor, bits: int) -> Tensor:
    """w -> s · round(w / s), s = max |w| of an output channel (first dimension) / (2^(bits-1) - 1).

    A channel of zeros stays as it is.
    """
    levels = 2 ** (bits - 1) - 1
    scale = weight.abs().flatten(1).amax(1) / levels  # [O]
    scale = torch.where(scale > 0, scale, 1.0).reshape(-1, *[1] * (weight.dim() - 1))
    return (weight / scale).round().clamp(-levels, levels) * scale
