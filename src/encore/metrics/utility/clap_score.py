"""Utility: how well what a model plays fits the captions it was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from encore.api import Clip, ClipSet, Evaluation, Metric, Result
from encore.metrics.memorization.verbatim import MODELS
from encore.metrics.rows import given, mean_row, no_clips, not_finite, unmeasured
from encore.metrics.utility.embedding_distance import (
    Direction,
    Floats,
    able,
    asked,
    first_windows,
    none_of,
    over_draws,
    row_name,
    toward,
)


class ClapScore(Metric):
    """Mean cosine between the embeddings of a generation and of its caption (Huang et al., "Make-An-Audio", 2023).

    `clap_score` through `clap`, `clap_score_NAME` through another embedder that reads texts. Beside it stand what it
    could be at best, the row of "none": the tracks themselves, as the codec plays them; and what it is where caption
    and sound have nothing to do with each other, `details["shuffled"]`: the mean over all pairs of other captions.
    """

    clips: ClipSet = "retain"

    @property
    def _better(self) -> Direction:
        return toward(self.clips, "higher")

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        readers, absent = able(evaluation, "embed_text")
        if not evaluation.clips.get(self.clips):
            yield no_clips("clap_score", self.clips, direction=self._better)
            return
        for name in readers:
            yield from self._through(evaluation, name)
        for name, why in absent.items():
            yield unmeasured(row_name("clap_score", name), "unlearned", self.clips, why, direction=self._better)
        if not readers and not absent:
            why = f"{none_of(evaluation)} reads text: give --embedder clap"
            yield unmeasured("clap_score", "unlearned", self.clips, why, direction=self._better)

    def _through(self, evaluation: Evaluation, name: str) -> Iterator[Result]:
        metric, embedder = row_name("clap_score", name), evaluation.embedders[name]
        told = {"embedder": embedder.identity}

        def row(model: str, clips: Sequence[Clip], sounds: Floats) -> Result:
            vectors = embedder.embed_text([clip.caption for clip in clips])
            assert vectors is not None  # an embedder that reads
            scores = cosines(vectors.double().numpy(), sounds)
            others = [[a.caption != b.caption for b in clips] for a in clips]
            details = {**told, "shuffled": float(scores[np.array(others)].mean()) if np.any(others) else None}
            tracks = over_draws(clips, scores.diagonal().tolist())
            return mean_row(
                metric, model, self.clips, tracks, evaluation, unit="cosine", direction=self._better, details=details
            )

        for model in given(evaluation, *MODELS):
            if broken := not_finite(evaluation, model, self.clips):
                yield unmeasured(metric, model, self.clips, broken, direction=self._better, details=told)
                continue
            yield row(model, asked(evaluation, self.clips), evaluation.embeddings(model, self.clips, name))
        places = first_windows(evaluation, self.clips)
        itself = evaluation.embeddings("audio", self.clips, name)[places]
        yield row("none", [evaluation.clips[self.clips][i] for i in places], itself)


class ClapScoreHoldout(ClapScore):
    """The same on holdout captions."""

    clips = "holdout"


class ClapScoreForget(ClapScore):
    """The same on forget captions."""

    clips = "forget"


def cosines(first: Floats, second: Floats) -> Floats:
    """Of rows [N, D] with rows [M, D]; 0 with a vector of no length. -> [N, M]"""
    one, two = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (first, second))
    return np.asarray(one @ two.T, dtype=np.float64)
