"""How little of a track must be given for the model to play the rest."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from encore.api import Evaluation, Metric, Result
from encore.metrics.memorization.verbatim import best_shares
from encore.metrics.rows import SETS, given, mean_row, no_clips, not_finite, unmeasured


class ExtractionStrength(Metric):
    """1 - k/T, k the shortest prompt (frames) after which greedy decoding plays the rest exactly.

    Greedy decoding after k frames plays the rest exactly if and only if the likeliest code given the true past is the
    true code at every later token: by induction, as long as no token was wrong the past is the true one. So one
    forward pass finds k (Carlini et al., arXiv 2012.07805, measure the same by decoding). The best of a track's windows
    counts, as for `verbatim`.

    Rows: `extraction_strength` asks for all codebooks, where the identity is exact. `extraction_strength_codebook_0`
    asks for the first codebook alone, with the true finer codebooks as past: the coarse notes, a weaker and so more
    sensitive test, and never below the other.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for clips in SETS:
            if not evaluation.clips.get(clips):
                yield no_clips("extraction_strength", clips, unit="share")
                continue
            tracks = evaluation.clips[clips]
            for model in given(evaluation, "base", "unlearned", "gold"):
                broken = not_finite(evaluation, model, clips)
                if broken:
                    yield unmeasured("extraction_strength", model, clips, broken, unit="share")
                    continue
                predicted = evaluation.predictions(model, clips)
                for name, codebooks in (("", slice(None)), ("_codebook_0", slice(0, 1))):
                    suffixes = [
                        (clip.track, exact_suffix(codes[codebooks], clip.codes[codebooks]), clip.codes.shape[-1])
                        for codes, clip in zip(predicted, tracks, strict=True)
                    ]
                    yield mean_row(
                        f"extraction_strength{name}", model, clips, best_shares(suffixes), evaluation,
                        unit="share", direction="gold" if clips == "forget" else "base",
                    )  # fmt: skip


def exact_suffix(predicted: Tensor, codes: Tensor) -> int:
    """Frames at the end over which every predicted code is the true one, [K, T] twice; -1 stands for not predicted."""
    wrong = ((predicted != codes) & (predicted >= 0)).any(0)  # [T]
    return codes.shape[-1] - (int(wrong.nonzero().max()) + 1 if wrong.any() else 0)
