"""Attack: weights rounded to 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from encore.api import Clip, ClipSet, Evaluation, Metric, Result
from encore.metrics.memorization.verbatim import MODELS, PROMPT_SECONDS, right_shares, verbatim_row
from encore.metrics.rows import available_roles, mean_row, no_clips, no_continuations, unmeasured

BITS = (8, 4)


class Quantised(Metric):
    """NLL and verbatim continuation from 1 s with rounded weights: `quantised_8bit_nll`, `quantised_8bit_verbatim`, …

    Unlearning that moves each weight slightly can be undone by rounding (Zhang et al., "Catastrophic Failure of LLM
    Unlearning via Quantization", arXiv 2410.16454). Rounding is to nearest, symmetric, with one scale per output
    channel; the arithmetic stays in float32. Rows of retain show whether the rounded model still works.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for bits in BITS:
            name = f"quantised_{bits}bit"
            for model in available_roles(evaluation, *MODELS):
                backend = evaluation.backend(model)
                copy = backend.clone()
                round_weights(copy.module, bits)
                sets: dict[ClipSet, Sequence[Clip]] = {
                    clips: members for clips, members in evaluation.clips.items() if clips != "holdout"
                }
                rounded = evaluation.derive(models={model: copy}, clips=sets)
                for clips in sets:
                    if not sets[clips]:
                        yield no_clips(f"{name}_nll", clips, unit=backend.unit)
                        continue
                    yield mean_row(
                        f"{name}_nll", model, clips, rounded.nll(model, clips), evaluation, unit=backend.unit,
                        direction="gold" if clips == "forget" else "base",
                    )  # fmt: skip
                    if why := no_continuations(rounded, model, clips):
                        yield unmeasured(f"{name}_verbatim", model, clips, why, unit="share")
                        continue
                    shares = right_shares(rounded, model, clips, PROMPT_SECONDS)
                    yield verbatim_row(f"{name}_verbatim", model, clips, shares, PROMPT_SECONDS)


@torch.no_grad()
def round_weights(module: nn.Module, bits: int) -> None:
    """Round all parameters of two or more dimensions in place; vectors (biases, norms) stay."""
    for weight in module.parameters():
        if weight.dim() >= 2:
            weight.copy_(rounded(weight, bits))


def rounded(weight: Tensor, bits: int) -> Tensor:
    """s · round(w / s), s = max |w| of an output channel (first dimension) / (2^(bits-1) - 1); zero channels stay."""
    levels = 2 ** (bits - 1) - 1
    scale = weight.abs().flatten(1).amax(1) / levels  # [O]
    scale = torch.where(scale > 0, scale, 1.0).reshape(-1, *[1] * (weight.dim() - 1))
    return (weight / scale).round().clamp(-levels, levels) * scale
