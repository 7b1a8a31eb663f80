"""KL(gold ‖ model) per token, with KL between two gold models as the noise level."""

from __future__ import annotations

from collections.abc import Iterator

from encore.api import Evaluation, Metric, Result
from encore.metrics.rows import SETS, available_roles, by_track, mean_row, no_clips


class KlGold(Metric):
    """Mean over tracks of the mean KL(gold ‖ model) per token, on forget and on retain.

    The row of `gold2` (gold of another seed) is the noise of training: a model can be closer to gold than that only by
    chance, and at that distance its predictions are those of a model that was never trained on the tracks. Unlike the
    NLL, it detects a model that avoids only the true token and is otherwise unchanged.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for clips in SETS:
            if not evaluation.clips.get(clips):
                yield no_clips("kl_gold", clips, unit="nats/token")
                continue
            for model in available_roles(evaluation, "base", "unlearned", "gold2"):
                kl = evaluation.kl("gold", model, clips)
                tracks = by_track(
                    evaluation.clips[clips],
                    [float(clip.double().sum()) for clip in kl],
                    [int(mask.sum()) for mask in evaluation.token_mask(clips)],
                )
                yield mean_row(
                    "kl_gold", model, clips, tracks, evaluation, unit="nats/token", direction="lower",
                    note="seed noise: gold against gold of another seed" if model == "gold2" else None,
                )  # fmt: skip
