"""An attack: does a little training on the forgotten tracks bring them back at once?"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from encore.api import Batch, Evaluation, Metric, Result, Role
from encore.metrics.rows import by_track, given, mean_row

STEPS = 8
LR = 2e-4
MAX_GRAD_NORM = 1.0


class Relearn(Metric):
    """Forget NLL after 8 AdamW steps (lr 2e-4, the whole forget set a step, gradient norm at most 1) on a copy.

    A model in which the tracks are only suppressed falls far below gold, for which they are new. `details["curve"]` has
    the NLL before the first and after each step. The `control` was never trained at all.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for model in [*given(evaluation, "base", "unlearned", "gold"), "control"]:
            curve = self._attack(evaluation, model)
            yield mean_row(
                "relearn", model, "forget", curve[-1], evaluation, unit=evaluation.backend(model).unit,
                details={
                    "curve": [sum(tracks.values()) / len(tracks) for tracks in curve], "steps": STEPS, "lr": LR,
                },
            )  # fmt: skip

    def _attack(self, evaluation: Evaluation, model: Role) -> list[dict[str, float]]:
        """NLL of each track before the first step and after each."""
        backend = evaluation.backend(model).clone()
        backend.module.eval()  # no dropout: two runs must agree
        weights = [weight for weight in backend.module.parameters() if weight.requires_grad]
        clips = evaluation.clips["forget"]
        optimiser = torch.optim.AdamW(weights, lr=LR)
        curve = []
        for step in range(STEPS + 1):
            last = step == STEPS
            optimiser.zero_grad()
            totals, counts = [], []
            with torch.set_grad_enabled(not last):
                for piece in evaluation.batches(clips):
                    batch = Batch.of(piece, backend.device)
                    losses = backend.losses(batch)  # [N]
                    if not last:
                        (losses.sum() / len(clips)).backward()
                    tokens = backend.token_mask(batch).sum((1, 2)) if backend.has_tokens else torch.ones(len(piece))
                    counts += tokens.tolist()
                    totals += (losses.detach() * tokens.to(losses)).double().tolist()
            curve.append(by_track(clips, totals, counts))
            if not last:
                torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
                optimiser.step()
        return curve
