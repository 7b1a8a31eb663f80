"""ε per track: the (ε, δ)-indistinguishability of a model's and gold's next-token distributions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from encore.api import Batch, Clip, Evaluation, Metric, Result, Role
from encore.metrics.privacy.gold_tests import rows_against_gold
from encore.metrics.rows import mean_row, windows_by_track

DELTA = 0.05
BISECTIONS = 50

Floats = NDArray[np.float64]


class Epsilon(Metric):
    """The smallest ε ≥ 0 for which model and gold are (ε, δ)-indistinguishable at a random token of a forget track.

    P is the model's and Q gold's next-token distribution, given the caption and the track's true past. The mean over
    the track's tokens of H(P ‖ Q) = Σ_v max(0, P_v - e^ε Q_v) is at most δ = .05, and so is that of H(Q ‖ P): no test
    of one token at a random position has a true-positive rate above e^ε times its false-positive rate plus δ. This is
    the δ-approximate max divergence in both directions (Dwork and Roth, "The Algorithmic Foundations of Differential
    Privacy", 2014, section 3.5.1), computed exactly from the models' distributions. 0 is equal to gold; the row of
    gold2 is the noise.

    This is not the per-example ε of Triantafillou et al. ("Are we making progress in unlearning?", arXiv 2406.09073),
    which is over the randomness of training, estimated from attacks on hundreds of retrained and unlearned models. Here
    there is one model and one gold, only the token is random, and nothing follows for other training runs.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        return rows_against_gold(evaluation, "epsilon", ("forget",), _row, direction="lower")


def _row(evaluation: Evaluation, model: Role) -> Result:
    return mean_row(
        "epsilon", model, "forget", _by_track(evaluation, model), evaluation, direction="lower",
        details={"delta": DELTA}, note="seed noise: gold against gold of another seed" if model == "gold2" else None,
    )  # fmt: skip


def _by_track(evaluation: Evaluation, model: Role) -> dict[str, float]:
    """ε of each track; the predictions for one track at a time are in memory."""
    windows = windows_by_track(evaluation.clips["forget"])

    def make() -> dict[str, torch.Tensor]:
        values = [
            epsilon(_predictions(evaluation, model, clips), _predictions(evaluation, "gold", clips), DELTA)
            for _, clips in sorted(windows.items())
        ]
        return {"epsilon": torch.tensor(values, dtype=torch.float64)}

    forget = evaluation.clips["forget"]
    tensors = evaluation.cached_on_disk(("epsilon", DELTA), make, models=[model, "gold"], clips=forget)
    return dict(zip(sorted(windows), tensors["epsilon"].tolist(), strict=True))


@torch.no_grad()
def _predictions(evaluation: Evaluation, role: Role, clips: list[Clip]) -> Floats:
    """Log-probabilities of all codes at every predicted token of clips, [n, V]."""
    backend, parts = evaluation.backend(role), []
    for part in evaluation.batches(clips):
        batch = Batch.of(part, backend.device)
        parts.append(backend.logits(batch)[backend.token_mask(batch)].double().log_softmax(-1).cpu())
    return torch.cat(parts).numpy()


def epsilon(first: Floats, second: Floats, delta: float) -> float:
    """The smallest ε ≥ 0 at which neither mean hockey-stick divergence exceeds δ, to at least nine digits.

    All codes of all tokens are sorted by their log-ratio once. Each divergence is then a difference of two sums over
    the codes beyond ±ε, decreasing in ε, and ε is found by bisection.

    Args:
        first: log-probabilities, [n, V].
        second: log-probabilities, [n, V].
        delta: δ.
    """
    ratio = (first - second).ravel()
    order = np.argsort(ratio)
    ratio, p, q = ratio[order], np.exp(first).ravel()[order], np.exp(second).ravel()[order]
    above_p, above_q = (np.append(np.cumsum(x[::-1])[::-1], 0.0) for x in (p, q))  # sums from each index on
    below_p, below_q = (np.insert(np.cumsum(x), 0, 0.0) for x in (p, q))  # sums before each index

    def divergence(eps: float) -> float:
        high, low = np.searchsorted(ratio, eps, "right"), np.searchsorted(ratio, -eps, "left")
        factor = np.exp(eps)
        return float(max(above_p[high] - factor * above_q[high], below_q[low] - factor * below_p[low]) / len(first))

    low, high = 0.0, float(np.abs(ratio).max())
    if divergence(low) <= delta:
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if divergence(middle) <= delta else (middle, high)
    return high
