"""A guarantee's own measure, a track at a time: how far apart do a model and gold get in what they say next?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from encore.api import Batch, Clip, Evaluation, Metric, Result, Role
from encore.metrics.privacy.gold_tests import ALONE
from encore.metrics.rows import given, mean_row, not_finite, unmeasured

DELTA = 0.05
HALVINGS = 50  # of the interval in which ε is looked for

Floats = NDArray[np.float64]


class Epsilon(Metric):
    """The smallest ε ≥ 0 for which model and gold are (ε, δ)-indistinguishable at a random token of a forget track.

    Of the next token's distributions P (the model's) and Q (gold's), given the caption and the track's true past, the
    mean over the track's tokens of H(P ‖ Q) = Σ_v max(0, P_v - e^ε Q_v) is at most δ = .05, and that of H(Q ‖ P) as
    well: no test of one token, at a place drawn at random, has a true-positive rate above e^ε times its
    false-positive rate plus δ. It is the δ-approximate max divergence in both directions (Dwork and Roth, "The
    Algorithmic Foundations of Differential Privacy", 2014, section 3.5.1), exact from the models' own distributions.
    0 is gold's equal; the row of gold2 is the noise.

    This is not the per-example ε of Triantafillou et al. ("Are we making progress in unlearning?", arXiv 2406.09073):
    theirs is over the randomness of training, estimated from attacks on hundreds of models that were retrained and
    unlearned. Here there is one model and one gold, the randomness is of the token alone, and nothing follows for
    other trainings.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        models = given(evaluation, "base", "unlearned", "gold2")
        if not models:
            yield unmeasured("epsilon", "unlearned", "forget", ALONE, direction="lower")
        for model in models:
            broken = not_finite(evaluation, model, "forget") or not_finite(evaluation, "gold", "forget")
            if broken:
                yield unmeasured("epsilon", model, "forget", broken, direction="lower")
                continue
            yield mean_row(
                "epsilon", model, "forget", _by_track(evaluation, model), evaluation, direction="lower",
                details={"delta": DELTA},
                note="seed noise: gold against gold of another seed" if model == "gold2" else None,
            )  # fmt: skip


def _by_track(evaluation: Evaluation, model: Role) -> dict[str, float]:
    """ε of each track; memory is that of all predictions for one track."""
    windows: dict[str, list[Clip]] = {}
    for clip in evaluation.clips["forget"]:
        windows.setdefault(clip.track, []).append(clip)

    def make() -> dict[str, torch.Tensor]:
        found = [
            epsilon(_predictions(evaluation, model, clips), _predictions(evaluation, "gold", clips), DELTA)
            for _, clips in sorted(windows.items())
        ]
        return {"epsilon": torch.tensor(found, dtype=torch.float64)}

    made = evaluation.cached_on_disk(("epsilon", DELTA), make, models=[model, "gold"], clips=evaluation.clips["forget"])
    return dict(zip(sorted(windows), made["epsilon"].tolist(), strict=True))


@torch.no_grad()
def _predictions(evaluation: Evaluation, role: Role, clips: list[Clip]) -> Floats:
    """Log-probabilities of every code at every predicted token of clips, [n, V]."""
    backend, parts = evaluation.backend(role), []
    for piece in evaluation.batches(clips):
        batch = Batch.of(piece, backend.device)
        parts.append(backend.logits(batch)[backend.token_mask(batch)].double().log_softmax(-1).cpu())
    return torch.cat(parts).numpy()


def epsilon(first: Floats, second: Floats, delta: float) -> float:
    """The smallest ε ≥ 0 at which neither mean hockey-stick divergence is above δ, to nine digits or better.

    All codes of all tokens are sorted by their log-ratio once: each divergence is then a difference of two sums over
    the codes beyond ±ε, and ε is found by bisection, for both fall as it grows.

    Args:
        first, second: log-probabilities [n, V].
    """
    ratio = (first - second).ravel()
    order = np.argsort(ratio)
    ratio, p, q = ratio[order], np.exp(first).ravel()[order], np.exp(second).ravel()[order]
    above_p, above_q = (np.append(np.cumsum(one[::-1])[::-1], 0.0) for one in (p, q))  # sums from each place on
    below_p, below_q = (np.insert(np.cumsum(one), 0, 0.0) for one in (p, q))  # sums before each place

    def divergence(eps: float) -> float:
        high, low = np.searchsorted(ratio, eps, "right"), np.searchsorted(ratio, -eps, "left")
        factor = np.exp(eps)
        return float(max(above_p[high] - factor * above_q[high], below_q[low] - factor * below_p[low]) / len(first))

    low, high = 0.0, float(np.abs(ratio).max())
    if divergence(low) <= delta:
        return low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if divergence(middle) <= delta else (middle, high)
    return high
