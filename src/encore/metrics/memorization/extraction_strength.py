"""Extraction strength: how short a prompt suffices for the model to generate the rest of a track exactly."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from encore.api import ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.memorization.verbatim import MODELS, best_shares
from encore.metrics.rows import SETS, mean_row, rows_by_model


class ExtractionStrength(Metric):
    """1 - k/T, k the shortest prompt (frames) after which greedy decoding reproduces the rest exactly.

    Greedy decoding after k frames reproduces the rest exactly if and only if the argmax code given the true past is
    the true code at every later token (by induction: until the first error the past is the true one). So one forward
    pass finds k (Carlini et al., arXiv 2012.07805, measure the same by decoding). A track's value is the best of its
    windows, as for `verbatim`.

    Rows: `extraction_strength` requires all codebooks, where the equivalence is exact.
    `extraction_strength_codebook_0` requires only the first codebook, with the true finer codebooks as past. It tests
    the coarse notes, is more sensitive, and is never below the other.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        yield from rows_by_model(evaluation, "extraction_strength", SETS, MODELS, _rows, unit="share")


def _rows(evaluation: Evaluation, model: Role, clips: ClipSet) -> Iterator[Result]:
    predicted = evaluation.predictions(model, clips)
    for name, codebooks in (("", slice(None)), ("_codebook_0", slice(0, 1))):
        suffixes = [
            (clip.track, exact_suffix(codes[codebooks], clip.codes[codebooks]), clip.codes.shape[-1])
            for codes, clip in zip(predicted, evaluation.clips[clips], strict=True)
        ]
        yield mean_row(
            f"extraction_strength{name}", model, clips, best_shares(suffixes), evaluation,
            unit="share", direction="gold" if clips == "forget" else "base",
        )  # fmt: skip


def exact_suffix(predicted: Tensor, codes: Tensor) -> int:
    """Number of final frames in which every predicted code is the true one.

    Args:
        predicted: argmax codes, [K, T]; -1 where the model predicts nothing.
        codes: true codes, [K, T].
    """
    wrong = ((predicted != codes) & (predicted >= 0)).any(0)  # [T]
    return codes.shape[-1] - (int(wrong.nonzero().max()) + 1 if wrong.any() else 0)
