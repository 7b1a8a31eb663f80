"""Utility: does a model still play the same kinds of music for the same captions?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from encore.api import ClipSet, Evaluation, Metric, Result
from encore.metrics.memorization.verbatim import MODELS
from encore.metrics.rows import given, mean_row, not_finite, unmeasured
from encore.metrics.utility.embedding_distance import (
    Direction,
    Floats,
    able,
    asked,
    first_windows,
    no_generations,
    none_of,
    over_draws,
    row_name,
    toward,
)

LEAST = 1e-6  # a probability below it counts as that much


class TagKl(Metric):
    """KL(p ‖ q) = Σ_c p_c ln(p_c / q_c) between what a tagger hears, nats, the mean over tracks.

    `tag_kl`: p is of base's generation, q of the model's for the same caption and noise. `tag_kl_track`: p is of
    the track itself, as the codec plays it; its row of "none" compares the track's file with that, and is what the
    codec alone costs. Paired as AudioLDM's evaluation (Liu et al., 2023) and No Encore (2025) pair it, reference first;
    p and q are the tagger's probabilities, divided by their sum where any number of tags may apply (sigmoids). Figures
    of two taggers do not compare, which is why the rows carry the embedder's name.
    """

    clips: ClipSet = "retain"

    @property
    def _better(self) -> Direction:
        return toward(self.clips, "lower")

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        taggers, absent = able(evaluation, "tags")
        if why := no_generations(evaluation, self.clips):
            yield unmeasured("tag_kl", "unlearned", self.clips, why, direction=self._better)
            return
        for name in taggers:
            yield from self._through(evaluation, name)
        for name, why in absent.items():
            yield unmeasured(row_name("tag_kl", name), "unlearned", self.clips, why, direction=self._better)
        if not taggers and not absent:
            why = f"{none_of(evaluation)} has tags: give --embedder clap, ast or passt"
            yield unmeasured("tag_kl", "unlearned", self.clips, why, direction=self._better)

    def _through(self, evaluation: Evaluation, name: str) -> Iterator[Result]:
        embedder, played = evaluation.embedders[name], asked(evaluation, self.clips)
        told = {"embedder": embedder.identity, "tags": len(embedder.tag_names)}
        places = first_windows(evaluation, self.clips)
        tracks = [evaluation.clips[self.clips][i] for i in places]

        def tags(source: str) -> Floats:
            found = evaluation.tags(source, self.clips, name)  # type: ignore[arg-type]
            assert found is not None  # an embedder with tags
            return found

        itself = tags("audio")[places]
        of_track = np.repeat(itself, len(played) // len(tracks), 0)
        for kind, reference, models in (
            ("tag_kl", None, given(evaluation, "unlearned", "gold")),
            ("tag_kl_track", of_track, given(evaluation, *MODELS)),
        ):
            for model in models:
                metric = row_name(kind, name)
                if broken := not_finite(evaluation, model, self.clips):
                    yield unmeasured(metric, model, self.clips, broken, direction=self._better, details=told)
                    continue
                apart = kl(tags("base") if reference is None else reference, tags(model))
                tracks_apart = over_draws(played, apart.tolist())
                yield mean_row(
                    metric, model, self.clips, tracks_apart, evaluation, unit="nats", direction=self._better,
                    details=told,
                )  # fmt: skip
        if evaluation.has_audio(self.clips):
            apart = kl(tags("recorded")[places], itself)
            yield mean_row(
                row_name("tag_kl_track", name), "none", self.clips, over_draws(tracks, apart.tolist()), evaluation,
                unit="nats", direction=self._better, details=told,
            )  # fmt: skip


class TagKlHoldout(TagKl):
    """The same on holdout captions."""

    clips = "holdout"


class TagKlForget(TagKl):
    """The same on forget captions."""

    clips = "forget"


def kl(reference: Floats, other: Floats) -> Floats:
    """KL(reference ‖ other) of rows of probabilities [N, C], each divided by its sum, nats. -> [N]"""
    p, q = (np.maximum(rows / rows.sum(1, keepdims=True), LEAST) for rows in (reference, other))
    p, q = (rows / rows.sum(1, keepdims=True) for rows in (p, q))
    return np.asarray((p * np.log(p / q)).sum(1), dtype=np.float64)
