"""Utility: KL divergence between the tags of two models' generations for the same captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from encore.api import Clip, Evaluation, Result
from encore.metrics.memorization.verbatim import MODELS
from encore.metrics.rows import available_roles, mean_row, not_finite, unmeasured
from encore.metrics.utility.embedding_distance import (
    EmbedderMetric,
    Floats,
    first_window_indices,
    generation_clips,
    mean_per_track,
    row_name,
)

MIN_PROBABILITY = 1e-6  # probabilities are clamped to it


class TagKl(EmbedderMetric):
    """KL(p ‖ q) = Σ_c p_c ln(p_c / q_c) between a tagger's probabilities, in nats, the mean over tracks.

    `tag_kl`: p is from base's generation, q from the model's for the same caption and noise. `tag_kl_track`: p is from
    the track's decoded codes; its row of "none" compares the track's file with them, the cost of the codec alone.
    Reference first, as in AudioLDM's evaluation (Liu et al., 2023) and No Encore (2025). p and q are divided by their
    sum where any number of tags may apply (sigmoids). Values of different taggers are not comparable, so the rows
    carry the embedder's name.
    """

    metric, ability = "tag_kl", "tags"
    lacking = "has tags: give --embedder clap, ast or passt"

    def _embedder_rows(self, evaluation: Evaluation, name: str) -> Iterator[Result]:
        embedder, clips = evaluation.embedders[name], generation_clips(evaluation, self.clips)
        details = {"embedder": embedder.identity, "tags": len(embedder.tag_names)}
        indices = first_window_indices(evaluation, self.clips)
        tracks = [evaluation.clips[self.clips][i] for i in indices]

        def tags(source: str) -> Floats:
            probabilities = evaluation.tags(source, self.clips, name)  # type: ignore[arg-type]
            assert probabilities is not None  # see `embedders_with`
            return probabilities

        def row(metric: str, model: str, clips: Sequence[Clip], reference: Floats, compared: Floats) -> Result:
            kls = mean_per_track(clips, kl(reference, compared).tolist())
            return mean_row(
                metric, model, self.clips, kls, evaluation, unit="nats", direction=self.better, details=details
            )

        decoded = tags("audio")[indices]
        repeated = np.repeat(decoded, len(clips) // len(tracks), 0)
        for kind, reference, models in (
            ("tag_kl", None, available_roles(evaluation, "unlearned", "gold")),
            ("tag_kl_track", repeated, available_roles(evaluation, *MODELS)),
        ):
            metric = row_name(kind, name)
            for model in models:
                if reason := not_finite(evaluation, model, self.clips):
                    yield unmeasured(metric, model, self.clips, reason, direction=self.better, details=details)
                    continue
                yield row(metric, model, clips, tags("base") if reference is None else reference, tags(model))
        if evaluation.has_audio(self.clips):
            yield row(row_name("tag_kl_track", name), "none", tracks, tags("recorded")[indices], decoded)


class TagKlHoldout(TagKl):
    """`tag_kl` on holdout captions."""

    clips = "holdout"


class TagKlForget(TagKl):
    """`tag_kl` on forget captions."""

    clips = "forget"


def kl(reference: Floats, compared: Floats) -> Floats:
    """KL(reference ‖ compared) in nats, [N], of rows of probabilities [N, C] that are normalised first."""
    p, q = (np.maximum(rows / rows.sum(1, keepdims=True), MIN_PROBABILITY) for rows in (reference, compared))
    p, q = (rows / rows.sum(1, keepdims=True) for rows in (p, q))
    return np.asarray((p * np.log(p / q)).sum(1), dtype=np.float64)
