"""Learning-rate schedules, and when a run with an adaptive schedule ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from encore.options import TrainOptions
from encore.unlearn.monitor import Snapshot

LOWEST = 0.05  # share of the peak that a decay ends at
TAIL = 0.08  # share of the peak that an adaptive decay ends at; the run continues at this rate
LOW = 0.1  # share of the peak from which on weights are averaged, and a run that only trains may end
LONGEST = 0.3  # share of the allowed steps (or seconds) after which an adaptive rate decays in any case
LONGEST_TRAINING = 0.8  # the same share in a run that only trains
WAITS = 0.2  # share of them after which it no longer waits for the method to be ready
RECOVERED = 0.5  # harm to memorised retain (1: the tolerance) at which an adaptive run may end
LOST_STEPS = 4  # steps in a row with memorised retain lost after which a run restarts; it recovers from fewer
PATIENCE = 2.5  # an adaptive run waits at most this many decay lengths for retain to recover


@dataclass
class Decay:
    """When an adaptive rate begins to decay, and over how many steps; None until that is known.

    `halvings`: how often the run restarted from the base, each time at half of the peak; `restarted_at`: the step at
    which it last did; `lost`: after how many steps in a row memorised retain has been lost.
    """

    begin: int | None = None
    steps: int = 0
    restarted_at: int = 0
    halvings: int = 0
    lost: int = 0


class Schedule:
    """The learning rate at each step, as a share of its peak.

    Linear warm-up, then a decay over all steps (`linear`, `cosine`), none (`constant`), or `adaptive`: constant until
    the forget tracks are near their target NLLs and the method is ready, then a cosine over `decay_steps`, then the
    lowest rate until retain has recovered. Snapshots decide both moments, so the number of steps need not be known
    beforehand; `steps` and `max_seconds` limit it. Where memorised retain is lost after `LOST_STEPS` steps in
    a row before the first snapshot, the method's peak is too high for the model, and the run restarts from the base
    at half of it.

    A run that only trains (`encore train`) has no targets: the method alone decides when the decay begins, and the run
    ends with the decay.

    Args:
        options: of the method.
        decay: state of an adaptive run; changed in place, and saved in checkpoints.
        forgets: whether the run has tracks to forget.
    """

    def __init__(self, options: TrainOptions, decay: Decay, *, forgets: bool = True) -> None:
        self.options, self.decay, self.forgets = options, decay, forgets

    @property
    def steps(self) -> int:
        """The most steps that the run may still reach."""
        if self.options.schedule != "adaptive" or self.decay.begin is None:
            return self.options.steps
        return min(self.options.steps, self.decay.begin + math.ceil(PATIENCE * self.decay.steps))

    def share(self, step: int) -> float:
        """The rate at step number `step` (from 0), as a share of its peak."""
        warm = min(1.0, (step - self.decay.restarted_at + 1) / (self.options.warmup + 1))
        return warm * max(self._decayed(step), LOWEST)

    @property
    def peak_share(self) -> float:
        """The peak, as a share of the rate that the run began with."""
        return 0.5**self.decay.halvings

    def is_watched(self, step: int, seconds: float) -> bool:
        """Whether a step is one of the first of an adaptive run whose peak rate the method chose.

        Args:
            step: steps taken.
            seconds: duration of the run so far.
        """
        options, decay = self.options, self.decay
        own = options.schedule == "adaptive" and self.forgets and options.lr is None
        first = decay.begin is None and step - decay.restarted_at <= options.eval_every
        return own and first and self._spent(step, seconds) < LONGEST

    def restart_if_lost(self, step: int, lost: bool) -> bool:
        """Whether to restart with the warm-up, at half of the peak; the weights are the loop's to restore.

        Args:
            step: steps taken.
            lost: whether memorised retain is lost after this one.
        """
        decay = self.decay
        decay.lost = decay.lost + 1 if lost else 0
        if decay.lost < min(LOST_STEPS, self.options.eval_every):
            return False
        decay.restarted_at, decay.halvings, decay.lost = step, decay.halvings + 1, 0
        return True

    def _spent(self, step: int, seconds: float) -> float:
        """So many steps or seconds as a share of those allowed, whichever is more."""
        allowed = self.options.max_seconds
        return max(step / self.options.steps, seconds / allowed if allowed else 0.0)

    def _decayed(self, step: int) -> float:
        kind, total = self.options.schedule, self.options.steps
        if kind == "adaptive":
            if self.decay.begin is None:
                return 1.0
            return max(TAIL, _cosine((step - self.decay.begin) / max(self.decay.steps, 1)))
        return {"linear": 1 - step / total, "cosine": _cosine(step / total), "constant": 1.0}[kind]

    def averages(self, step: int) -> bool:
        """Whether the weights after a step enter the average that an adaptive run ends with (`WeightAverage`)."""
        return self.options.schedule == "adaptive" and self.decay.begin is not None and self._decayed(step) <= LOW

    def is_done(self, snapshot: Snapshot, step: int, seconds: float, ready: Callable[[], bool] = lambda: True) -> bool:
        """Whether an adaptive run ends after a snapshot; also starts its decay when it is time.

        Args:
            snapshot: of the model after `step` steps.
            step: steps taken.
            seconds: duration of the run so far.
            ready: whether the method is ready for the decay.
        """
        options, decay = self.options, self.decay
        if options.schedule != "adaptive":
            return False
        spent = self._spent(step - decay.restarted_at, seconds)
        if decay.begin is None:
            if self.forgets:
                near = near_targets(snapshot, mean=6, track=10)
                begins = spent >= LONGEST or (near and (spent >= WAITS or ready()))
            else:
                begins = spent >= LONGEST_TRAINING or ready()
            if begins:
                left: float = options.steps - step
                if options.max_seconds:
                    left = min(left, (options.max_seconds - seconds) * step / max(seconds, 1e-9))
                decay.begin, decay.steps = step, max(1, min(options.decay_steps, int(left)))
            return False
        if not self.forgets:
            return self._decayed(step) <= LOW
        recovered = snapshot.retain_ok and snapshot.harm.get("memorised", 0.0) <= RECOVERED
        # The whole decay, so that the average of the weights at a low rate is over more than a few steps.
        return step - decay.begin >= decay.steps and recovered and near_targets(snapshot, mean=2, track=4)


def usual_steps(options: TrainOptions) -> int:
    """Usual length of a run: all steps; with an adaptive schedule, a decay after the share `WAITS` of them."""
    if options.schedule != "adaptive":
        return options.steps
    return min(options.steps, round(WAITS * options.steps) + options.decay_steps)


def near_targets(snapshot: Snapshot, *, mean: float, track: float) -> bool:
    """Whether the forget tracks are near their target NLLs; distances in units of `Snapshot.tolerance`.

    Args:
        snapshot: of the model; without targets the result is False.
        mean: how far below their targets the tracks may be on average.
        track: how far below its target any track may be.
    """
    gaps = [(target - snapshot.forget[name]) / snapshot.tolerance[name] for name, target in snapshot.target_nll.items()]
    return bool(gaps) and sum(gaps) / len(gaps) <= mean and max(gaps) <= track


def _cosine(passed: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))
