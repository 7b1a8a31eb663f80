"""Utility: how well generations match their captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from encore.api import Clip, Evaluation, Result
from encore.metrics.memorization.verbatim import MODELS
from encore.metrics.rows import available_roles, mean_row, not_finite, unmeasured
from encore.metrics.utility.embedding_distance import (
    EmbedderMetric,
    Floats,
    cosines,
    first_window_indices,
    generation_clips,
    mean_per_track,
    row_name,
)


class ClapScore(EmbedderMetric):
    """Mean cosine similarity of a generation's and its caption's embeddings (Huang et al., "Make-An-Audio", 2023).

    `clap_score` through `clap`, `clap_score_NAME` through another embedder that embeds text. The row of "none" is the
    upper reference: the tracks themselves, decoded by the codec. `details["shuffled"]` is the level of unrelated
    captions: the mean over all pairs of a generation and another caption.
    """

    metric, ability, otherwise = "clap_score", "embed_text", "higher"
    lacking = "embeds text: give --embedder clap"

    def why_not(self, evaluation: Evaluation) -> str | None:
        return None if evaluation.clips.get(self.clips) else f"there are no {self.clips} tracks"

    def _embedder_rows(self, evaluation: Evaluation, name: str) -> Iterator[Result]:
        metric, embedder = row_name("clap_score", name), evaluation.embedders[name]
        details = {"embedder": embedder.identity}

        def row(model: str, clips: Sequence[Clip], audio: Floats) -> Result:
            text = embedder.embed_text([clip.caption for clip in clips])
            assert text is not None  # see `embedders_with`
            scores = cosines(text.double().numpy(), audio)
            unrelated = [[a.caption != b.caption for b in clips] for a in clips]
            shuffled = float(scores[np.array(unrelated)].mean()) if np.any(unrelated) else None
            tracks = mean_per_track(clips, scores.diagonal().tolist())
            return mean_row(
                metric, model, self.clips, tracks, evaluation, unit="cosine", direction=self.better,
                details={**details, "shuffled": shuffled},
            )  # fmt: skip

        for model in available_roles(evaluation, *MODELS):
            if reason := not_finite(evaluation, model, self.clips):
                yield unmeasured(metric, model, self.clips, reason, direction=self.better, details=details)
                continue
            yield row(model, generation_clips(evaluation, self.clips), evaluation.embeddings(model, self.clips, name))
        indices = first_window_indices(evaluation, self.clips)
        decoded = evaluation.embeddings("audio", self.clips, name)[indices]
        yield row("none", [evaluation.clips[self.clips][i] for i in indices], decoded)


class ClapScoreHoldout(ClapScore):
    """`clap_score` on holdout captions."""

    clips = "holdout"


class ClapScoreForget(ClapScore):
    """`clap_score` on forget captions."""

    clips = "forget"
