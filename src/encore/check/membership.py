"""Membership of single tracks and of whole lists, calibrated on held-out music by ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from encore import stats
from encore.api import ClipSet, Evaluation
from encore.metrics.privacy.dataset_inference import combined, evidence_of, membership_features

COSTLY = ("gradnorm",)  # takes a backward pass per clip
LEVEL = 0.05  # of p after correction

Floats = NDArray[np.float64]


class Membership:
    """Membership scores of checked and held-out tracks under one model, and tests of them.

    The scores are those of the metrics `membership_auc` and `membership_attacks` that the models allow: LOSS, Min-K,
    Min-K++, ZLib, caption contrast, and with gold the reference gap. A track is compared with held-out tracks by the
    mean of its standardised scores, as in `dataset_inference`. Mean and deviation are those of all tracks that are
    compared, the checked one included, so that under "all are held-out" no track is special and ranks give exact
    p-values.

    Args:
        evaluation: has the model as "base", perhaps a gold, checked tracks as `forget` and held-out ones as `holdout`.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.names: list[str] = []
        tables: dict[ClipSet, list[Floats]] = {"forget": [], "holdout": []}
        self._ids: dict[ClipSet, list[str]] = {"forget": [], "holdout": []}
        features = {clips: membership_features(evaluation, "base", clips, without=COSTLY) for clips in tables}
        for name in features["forget"]:
            found = {clips: features[clips][name] for clips in tables}
            if not all(np.isfinite(list(scores.values())).all() for scores in found.values()):
                continue
            self.names.append(name)
            for clips, scores in found.items():
                self._ids[clips] = sorted(scores)
                tables[clips].append(np.array([scores[track] for track in sorted(scores)]))
        self.members, self.others = (np.array(tables[clips]).T for clips in ("forget", "holdout"))  # [tracks, scores]

    @property
    def least_p(self) -> float:
        """The least p that a track can have."""
        return 1 / (1 + len(self.others))

    def per_track(self) -> dict[str, tuple[float, float]]:
        """Track id -> p of being held-out, and p after the correction of Benjamini and Hochberg for all tracks.

        At least one score is needed.
        """
        from scipy import stats as scipy_stats

        p = conformal_p(self.members, self.others)
        adjusted = scipy_stats.false_discovery_control(p)
        return {
            track: (float(raw), float(corrected))
            for track, raw, corrected in zip(self._ids["forget"], p, adjusted, strict=True)
        }

    def of_list(self, tracks: Sequence[str] | None = None) -> float:
        """p of "these tracks are like the held-out ones", against "the model predicts them better": dataset inference.

        Maini et al. (arXiv 2406.06443) combine membership scores and test the mean of a list; here the combination is
        that of `dataset_inference`, and the test is Mann and Whitney's, one-sided, as the lists are short.

        Args:
            tracks: ids of checked tracks; None for all.
        """
        chosen = [i for i, track in enumerate(self._ids["forget"]) if tracks is None or track in tracks]
        return stats.rank_test(*evidence_of(self.members[chosen], self.others), alternative="greater")

    def of_artists(self, artists: Mapping[str, Sequence[str]]) -> dict[str, tuple[float, float]]:
        """Artist -> p of `of_list` for their tracks, and p after Holm's correction for all artists."""
        p = {artist: self.of_list(tracks) for artist, tracks in artists.items()}
        adjusted = stats.holm(list(p.values())).tolist() if p else []
        return {artist: (raw, corrected) for (artist, raw), corrected in zip(p.items(), adjusted, strict=True)}


def conformal_p(members: Floats, others: Floats) -> Floats:
    """Conformal p-value of each member being one of the others, by the mean of its standardised scores.

    Args:
        members: [n, K].
        others: [m, K].

    Returns:
        (1 + others that score as high) / (m + 1), [n].
    """
    p = []
    for row in members:
        scores = combined(np.concatenate([others, row[None]]))
        p.append(float(stats.conformal_p(scores[-1:], scores[:-1])[0]))
    return np.array(p)
