"""The distance that counts: KL(gold ‖ model) a token, beside the same between two golds."""

from __future__ import annotations

from collections.abc import Iterator

from encore.api import Evaluation, Metric, Result
from encore.metrics.rows import SETS, by_track, given, mean_row, no_clips


class KlGold(Metric):
    """Mean over tracks of the mean KL(gold ‖ model) a token, on forget and on retain.

    The row of `gold2` (gold of another seed) is the noise of training itself: nothing can be nearer to gold than that
    other than by chance, and a model at that distance is one that was never trained on the tracks, as far as its
    predictions tell. It catches what the NLL can't: a model that shuns the one right token and stays sure otherwise.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for clips in SETS:
            if not evaluation.clips.get(clips):
                yield no_clips("kl_gold", clips, unit="nats/token")
                continue
            for model in given(evaluation, "base", "unlearned", "gold2"):
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
