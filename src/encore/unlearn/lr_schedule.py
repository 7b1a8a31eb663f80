"""The learning rate of a run, and when a run with an adaptive one ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from encore.options import TrainOptions
from encore.unlearn.monitor import Snapshot

LOWEST = 0.05  # share of the peak that a decay ends at
TAIL = 0.08  # the same of an adaptive one, which goes on there
LOW = 0.1  # share of the peak below which an adaptive run may end
LONGEST = 0.3  # share of the steps (or seconds) allowed after which an adaptive rate decays, whatever was forgotten
WAITS = 0.2  # the same after which it no longer waits for the method to be ready
RECOVERED = 0.5  # harm to memorised retain, 1 being what is allowed, at which an adaptive run may end
PATIENCE = 2.5  # decays that an adaptive run waits at most for retain to recover


@dataclass
class Decay:
    """When an adaptive rate begins to decay, and over how many steps; None until that is known."""

    begin: int | None = None
    steps: int = 0


class Schedule:
    """The learning rate's share of its peak, step by step.

    Linear warm-up, then a decay over all steps (`linear`, `cosine`), none (`constant`), or `adaptive`: constant until
    the forget tracks are near their levels and the method is ready, then a cosine over `decay_steps`, then the lowest
    rate until everything that is to be kept has recovered. Both moments are read off the looks at forget, retain and
    held-out tracks, so that no number of steps has to be known beforehand; `steps` and `max_seconds` bound it.

    Args:
        options: of the method.
        decay: where an adaptive run stands; changed in place, and part of a checkpoint.
    """

    def __init__(self, options: TrainOptions, decay: Decay) -> None:
        self.options, self.decay = options, decay

    @property
    def steps(self) -> int:
        """How many steps the run will take at most, as far as is known."""
        if self.options.schedule != "adaptive" or self.decay.begin is None:
            return self.options.steps
        return min(self.options.steps, self.decay.begin + math.ceil(PATIENCE * self.decay.steps))

    def share(self, step: int) -> float:
        """The rate at a step that `step` others came before, as a share of its peak."""
        warm = min(1.0, (step + 1) / (self.options.warmup + 1))
        return warm * max(self._decayed(step), LOWEST)

    def _decayed(self, step: int) -> float:
        kind, total = self.options.schedule, self.options.steps
        if kind == "adaptive":
            if self.decay.begin is None:
                return 1.0
            return max(TAIL, _cosine((step - self.decay.begin) / max(self.decay.steps, 1)))
        return {"linear": 1 - step / total, "cosine": _cosine(step / total), "constant": 1.0}[kind]

    def averages(self, step: int) -> bool:
        """Whether the weights after a step belong to the mean that an adaptive run ends with (`WeightAverage`)."""
        return self.options.schedule == "adaptive" and self.decay.begin is not None and self._decayed(step) <= LOW

    def enough(self, look: Snapshot, step: int, seconds: float, ready: Callable[[], bool] = lambda: True) -> bool:
        """Whether an adaptive run is over after a look; decides on the way whether its decay begins.

        Args:
            look: at the model after `step` steps.
            step: steps taken.
            seconds: that the run has taken.
            ready: whether the method is ready for the decay.
        """
        options, decay = self.options, self.decay
        if options.schedule != "adaptive":
            return False
        spent = max(step / options.steps, seconds / options.max_seconds if options.max_seconds else 0.0)
        if decay.begin is None:
            if spent >= LONGEST or (near_levels(look, mean=6, track=10) and (spent >= WAITS or ready())):
                left: float = options.steps - step
                if options.max_seconds:
                    left = min(left, (options.max_seconds - seconds) * step / max(seconds, 1e-9))
                decay.begin, decay.steps = step, max(1, min(options.decay_steps, int(left)))
            return False
        recovered = look.retain_ok and look.harm.get("memorised", 0.0) <= RECOVERED
        return self._decayed(step) <= LOW and recovered and near_levels(look, mean=2, track=4)


def near_levels(look: Snapshot, *, mean: float, track: float) -> bool:
    """Whether the forget tracks are near their levels, in units of what counts as there (`Snapshot.tolerance`).

    Args:
        look: at the model; one without levels is never near.
        mean: how far below their levels the tracks may be on average.
        track: how far below its level any track may be.
    """
    short = [(level - look.forget[name]) / look.tolerance[name] for name, level in look.target_nll.items()]
    return bool(short) and sum(short) / len(short) <= mean and max(short) <= track


def _cosine(passed: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))
