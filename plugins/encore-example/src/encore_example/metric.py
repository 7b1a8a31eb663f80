"""A metric: one row for each model and set, with a figure per track, and the rule that judges it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from statistics import fmean

import torch
from encore.api import Batch, Evaluation, Metric, Result

SHARE = 0.9  # of gold's entropy


def near_gold(rows: Mapping[str, Result]) -> bool:
    """Whether the unlearned model is nearly as uncertain as gold; `rows` has the rows with a figure, by model.

    Without gold, KeyError tells Encore that there is nothing to compare with.
    """
    return rows["unlearned"].value >= SHARE * rows["gold"].value


class Entropy(Metric):
    """Mean entropy of the model's next-token distribution, H = -Σ p log p, in nats per token.

    A model that only avoids the true token stays certain; one that was not trained on the track is not.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for role in evaluation.models:
            for name, clips in evaluation.clips.items():
                tracks: dict[str, list[float]] = defaultdict(list)  # a long track has several clips
                for piece in evaluation.batches(clips):
                    for clip, value in zip(piece, self._entropy(evaluation, role, piece), strict=True):
                        tracks[clip.track].append(value)
                per_track = {track: fmean(values) for track, values in tracks.items()}
                yield Result(
                    metric="example_entropy",
                    model=role,
                    set=name,
                    value=fmean(per_track.values()) if per_track else None,
                    n=len(per_track),
                    unit="nats/token",
                    per_track=per_track,
                    why=None if per_track else "the set is empty",
                )

    @torch.inference_mode()
    def _entropy(self, evaluation, role, clips) -> list[float]:
        """Mean over the tokens that the model predicts, one figure per clip."""
        backend = evaluation.backend(role)
        batch = Batch.of(clips, backend.device)
        mask = backend.token_mask(batch)  # [N, K, T]
        logits = backend.logits(batch).float().masked_fill(~mask[..., None], 0)  # [N, K, T, V]
        entropy = torch.special.entr(logits.softmax(-1)).sum(-1) * mask  # [N, K, T]
        return (entropy.sum((1, 2)) / mask.sum((1, 2))).tolist()
