"""NLLs of forget, retain and holdout during a run, for stopping and the choice of the best weights.

Retain is measured in two parts: tracks that the base has memorised (NLL below half of the held-out NLL), and all
others. Their NLLs differ by a factor of a hundred, so a common mean would hide a loss of the first. A forget track is
done when its NLL has reached its target. Gold is never read here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from encore import distributed
from encore.api import Backend, Batch, Clip
from encore.memorised import HOLDOUT_DRIFT, MEAN_RISE, OTHER_SHARE, TRACK_RISE, has_memorised, memorised_below
from encore.memorised import SHARE as MEMORISED_SHARE

TOLERANCE = 0.05  # a track has reached its target at this share below it
LEAST_GAP = 0.1  # least rise of a loss without tokens, as a share of the held-out loss
SAMPLE = 64  # retain windows that are classified
WATCHED = 16  # windows of either kind that are measured
SHARE = 0.05  # default tolerance of a mean, as a share of the base model's value
LOST = 0.75  # memorised retain is lost above this share of the held-out NLL; up to .57, runs recovered at the same rate
FEW = 4  # memorised tracks that are measured after each of a run's first steps
BATCH = 16


@dataclass(frozen=True)
class Snapshot:
    """NLLs at one moment, nats per token (in the backend's `unit`).

    Args:
        forget: NLL of each forget track.
        memorised: NLL of each watched retain track that the base has memorised.
        not_memorised: NLL of each other watched retain track.
        holdout: mean NLL of the held-out tracks; None without any.
        target_nll: target NLL of each forget track; empty without a holdout, unless the method set them.
        tolerance: how far below its target a forget track still counts as done.
        harm: rise of NLL since base, as a multiple of the tolerance, of "memorised" (mean), "worst" (the memorised
            track that rose most), "not_memorised" (mean) and "holdout" (mean, also where it falls); see
            `StoppingMonitor`.
        worst: the memorised track that rose most.
        score: lower is better; see `StoppingMonitor`.
    """

    forget: dict[str, float]
    memorised: dict[str, float] = field(default_factory=dict)
    not_memorised: dict[str, float] = field(default_factory=dict)
    holdout: float | None = None
    target_nll: dict[str, float] = field(default_factory=dict)
    tolerance: dict[str, float] = field(default_factory=dict)
    harm: dict[str, float] = field(default_factory=dict)
    worst: str | None = None
    score: float = 0.0

    @property
    def worst_harm(self) -> float:
        """The largest harm, as a multiple of the tolerance."""
        return max(self.harm.values(), default=0.0)

    @property
    def retain_ok(self) -> bool:
        """Whether every harm is within its tolerance."""
        return self.worst_harm <= 1

    def reached(self, track: str) -> bool:
        """Whether a forget track has reached its target NLL."""
        return track in self.target_nll and self.forget[track] >= self.target_nll[track] - self.tolerance[track]

    def rank(self, stop: str) -> tuple[bool, float]:
        """Sort key, lower is better: the score; with `stop` "target", states with all targets reached come first."""
        short = stop == "target" and not all(self.reached(track) for track in self.forget)
        return (short, self.score)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class StoppingMonitor:
    """Measures a model on the same clips every time.

    The retain windows are a random sample of up to `SAMPLE`, one of every track before a second one of any. Each track
    is measured on its window of the lowest NLL under base, and counts as memorised where that is below half of the
    held-out NLL and half of its codes' entropy (`is_memorised`). Up to `WATCHED` tracks of either kind are measured.
    The loss of a model without tokens includes the loss on unpredictable noise, and does not show memorisation, so no
    track counts as memorised there.

    Tolerances since base, for a token model: +.03 nats on the mean of memorised retain (5 % where that is more), +.25
    nats on any single memorised track, +8 % on the mean of the other retain tracks, and ±.15 nats on the held-out
    mean. For a loss without tokens: +5 % on retain alone, as the scale of its drift on held-out music is unknown.
    The score is the largest harm in units of its tolerance, plus the mean distance of the forget tracks from their
    targets in units of 10 % of the target (without targets: minus their mean NLL).

    Args:
        backend: the model to measure; at construction it is the base.
        forget: clips to forget; empty in a run that only trains.
        retain: clips to keep; may be empty.
        holdout: clips the base was never trained on; may be empty.
        seed: selects the retain clips.

    Attributes:
        backend: the model that is measured.
        memorised_holdout: held-out tracks that the base has memorised, so that it cannot be new to them.
    """

    def __init__(
        self, backend: Backend, forget: Sequence[Clip], retain: Sequence[Clip], holdout: Sequence[Clip], *, seed: int
    ) -> None:
        self.backend = backend
        self._forget, self._holdout = forget, holdout
        self._measure_holdout()
        sample = _sample(retain, seed)
        self.classified = len({clip.track for clip in sample})  # tracks
        self.memorised, self._not_memorised = self._classify(sample)
        self.watched = len(self.memorised) + len(self._not_memorised)  # tracks
        self._measure_first()

    def measure_base_again(self) -> None:
        """Measure the base on the same clips, where it is computed in another precision than at construction."""
        self._measure_holdout()
        self._measure_first()

    def _measure_holdout(self) -> None:
        backend = self.backend
        nlls = track_nll(backend, self._holdout)
        self.holdout_nll = _mean(nlls)
        self._limit = memorised_below(self.holdout_nll, backend.codebook_size) if backend.has_tokens else -math.inf

        self.memorised_holdout: list[str] = []
        if backend.has_tokens:
            limit = memorised_below(None, backend.codebook_size)
            memorised = [clip for clip in self._holdout if has_memorised(clip.codes, nlls[clip.track], limit)]
            self.memorised_holdout = list(dict.fromkeys(clip.track for clip in memorised))

    def _measure_first(self) -> None:
        self._targets: dict[str, float] = {}
        self.first = Snapshot(
            track_nll(self.backend, self._forget), track_nll(self.backend, self.memorised),
            track_nll(self.backend, self._not_memorised), self.holdout_nll,
        )  # fmt: skip
        self.set_targets({} if self.holdout_nll is None else dict.fromkeys(self.first.forget, self.holdout_nll))

    def set_targets(self, target_nll: Mapping[str, float]) -> None:
        """Set the target NLL of every forget track; the default is the held-out mean."""
        self._targets = dict(target_nll)
        self.first = self._scored(self.first)

    def snapshot(self) -> Snapshot:
        """Measure the NLLs now, and their score."""
        return self._scored(
            Snapshot(
                track_nll(self.backend, self._forget),
                track_nll(self.backend, self.memorised),
                track_nll(self.backend, self._not_memorised),
                _mean(track_nll(self.backend, self._holdout)),
            )
        )

    def has_lost_memorised(self) -> bool:
        """Whether the model costs memorised retain nearly as much as new music, by a few of the watched tracks."""
        few = self.memorised[:FEW]
        return bool(few) and not mean(track_nll(self.backend, few)) < LOST / MEMORISED_SHARE * self._limit

    def _classify(self, sample: Sequence[Clip]) -> tuple[list[Clip], list[Clip]]:
        """The window of the lowest NLL of each track, up to `WATCHED` of memorised tracks and as many of others."""
        best = lowest_loss_clips(self.backend, sample)
        memorised = [clip for clip, nll in best if has_memorised(clip.codes, nll, self._limit)]
        others = [clip for clip, _ in best if clip not in memorised]
        return memorised[:WATCHED], others[:WATCHED]

    def _range(self, target: float) -> float:
        """The range that tolerances are shares of: for an NLL, the target itself, as it rises from near 0; without
        tokens, the distance of target and base, as the loss on unpredictable noise is common to both."""
        if self.backend.has_tokens:
            return target
        return max(target - mean(self.first.forget), LEAST_GAP * target)

    def _scored(self, snapshot: Snapshot) -> Snapshot:
        targets = self._targets
        tolerance = {track: TOLERANCE * self._range(target) for track, target in targets.items()}
        rises = {track: _inf_if_nan(value) - self.first.memorised[track] for track, value in snapshot.memorised.items()}
        worst = max(rises, key=rises.__getitem__) if rises else None
        harm = self._harm(snapshot, rises)
        if targets and snapshot.forget:
            distance = mean(
                {t: abs(_inf_if_nan(nll) - targets[t]) / (2 * tolerance[t]) for t, nll in snapshot.forget.items()}
            )
        elif snapshot.forget:
            nll = mean(snapshot.forget)
            distance = -nll if math.isfinite(nll) else math.inf
        else:
            distance = 0.0  # a run that only trains (`encore train`)
        score = max(harm.values(), default=0.0) + distance
        return replace(snapshot, target_nll=dict(targets), tolerance=tolerance, harm=harm, worst=worst, score=score)

    def _harm(self, snapshot: Snapshot, rises: Mapping[str, float]) -> dict[str, float]:
        first, harm = self.first, dict[str, float]()
        if rises:
            harm["memorised"] = max(0.0, mean(rises)) / max(MEAN_RISE, SHARE * mean(first.memorised))
            harm["worst"] = max(0.0, *rises.values()) / TRACK_RISE
        if snapshot.not_memorised:
            before = mean(first.not_memorised)
            share = OTHER_SHARE if self.backend.has_tokens else SHARE
            harm["not_memorised"] = max(0.0, _inf_if_nan(mean(snapshot.not_memorised)) - before) / max(
                share * before, 1e-6
            )
        if self.backend.has_tokens and first.holdout is not None and snapshot.holdout is not None:
            harm["holdout"] = abs(_inf_if_nan(snapshot.holdout) - first.holdout) / HOLDOUT_DRIFT
        return harm


def _sample(retain: Sequence[Clip], seed: int) -> list[Clip]:
    """Up to `SAMPLE` clips in random order, one of every track before a second one of any."""
    order = torch.randperm(len(retain), generator=torch.Generator().manual_seed(seed)).tolist()
    taken: dict[str, int] = {}
    turns: list[tuple[int, Clip]] = []
    for i in order:
        if len(taken) == SAMPLE:  # of so many tracks, no second clip is taken
            break
        clip = retain[i]
        taken[clip.track] = taken.get(clip.track, 0) + 1
        turns.append((taken[clip.track], clip))
    return [clip for _, clip in sorted(turns, key=lambda turn: turn[0])][:SAMPLE]


@torch.no_grad()
def lowest_loss_clips(backend: Backend, clips: Sequence[Clip]) -> list[tuple[Clip, float]]:
    """The clip of the lowest loss of each track, and that loss, in the backend's `unit`."""
    best: dict[str, tuple[Clip, float]] = {}
    for clip, (nll, _) in zip(clips, _losses(backend, clips), strict=True):
        if clip.track not in best or nll < best[clip.track][1]:
            best[clip.track] = (clip, nll)
    return list(best.values())


@torch.no_grad()
def track_nll(backend: Backend, clips: Sequence[Clip]) -> dict[str, float]:
    """Mean NLL of each track, nats per token; a track's windows are weighted by their tokens."""
    sums: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for clip, (nll, count) in zip(clips, _losses(backend, clips), strict=True):
        sums[clip.track] = sums.get(clip.track, 0.0) + nll * count
        tokens[clip.track] = tokens.get(clip.track, 0) + int(count)
    return {track: total / tokens[track] for track, total in sums.items()}


def _losses(backend: Backend, clips: Sequence[Clip]) -> list[list[float]]:
    """Loss and number of tokens of each clip; 1 without tokens. Of several processes each computes some."""

    def compute(part: Sequence[Clip]) -> torch.Tensor:
        batch = Batch.of(part, backend.device)
        losses = backend.losses(batch).double()
        counts = backend.token_mask(batch).sum((1, 2)) if backend.has_tokens else torch.ones_like(losses)
        return torch.stack([losses, counts.to(losses)], 1)

    return distributed.rows(clips, BATCH, compute, size=lambda clip: clip.codes.shape[-1]).tolist() if clips else []


def mean(values: Mapping[str, float]) -> float:
    """Mean over tracks, of which there is at least one."""
    return sum(values.values()) / len(values)


def _mean(values: Mapping[str, float]) -> float | None:
    return mean(values) if values else None


def _inf_if_nan(value: float) -> float:
    """Replace a value that is not finite by infinity, so that it compares as large."""
    return value if math.isfinite(value) else math.inf
