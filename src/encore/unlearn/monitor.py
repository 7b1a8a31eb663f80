"""How forget, retain and holdout stand during a run: what stopping and the choice of checkpoint rest on.

Retain is judged in two parts, because their NLLs differ by a factor of a hundred and a mean of both would hide the
loss of one: tracks that the base has memorised (below half of the held-out level), and all others. A forget track is
where it should be when its NLL has reached its target level. Gold is never read here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from encore.api import Backend, Batch, Clip
from encore.memorised import HOLDOUT_DRIFT, MEAN_RISE, OTHER_SHARE, TRACK_RISE, memorised_below

TOLERANCE = 0.05  # a track has reached its level at this share below it
LEAST_GAP = 0.1  # share of the held-out level that a loss without tokens is taken to rise by at least
SAMPLE = 64  # retain windows that are classified
WATCHED = 16  # windows of either kind that are looked at
SHARE = 0.05  # of base's value, that a mean may change by where nothing else is said
BATCH = 16


@dataclass(frozen=True)
class Snapshot:
    """NLLs at one moment, nats per token (in the backend's `unit`).

    Args:
        forget: NLL of each forget track.
        memorised: NLL of each watched retain track that the base has memorised.
        not_memorised: NLL of each other watched retain track.
        holdout: mean NLL of the held-out tracks; None without any.
        target_nll: target NLL of each forget track; empty without a holdout.
        tolerance: how far below its target a forget track counts as there.
        harm: what was lost since base, 1 being what is allowed, of "memorised" (mean), "worst" (the memorised track
            that lost most), "not_memorised" (mean) and "holdout" (mean, on either side); see `StoppingMonitor`.
        worst: the memorised track that lost most.
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
        """The largest harm, 1 being what is allowed."""
        return max(self.harm.values(), default=0.0)

    @property
    def retain_ok(self) -> bool:
        """Whether memorised retain, every memorised track, other retain and held-out music lost what they may."""
        return self.worst_harm <= 1

    def reached(self, track: str) -> bool:
        """Whether a forget track has reached its level."""
        return track in self.target_nll and self.forget[track] >= self.target_nll[track] - self.tolerance[track]

    def rank(self, stop: str) -> tuple[bool, float]:
        """Lower is better: the score; for a run that stops at the target, all tracks there before any other state."""
        short = stop == "target" and not all(self.reached(track) for track in self.forget)
        return (short, self.score)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class StoppingMonitor:
    """Looks at a model on the same clips every time.

    The retain windows are a random sample of up to `SAMPLE`, one of every track before a second one of any. Each track
    is watched through the window that the base knows best, and is memorised where the base's NLL there is below half
    of the held-out level. Up to `WATCHED` tracks of either kind are watched. The loss of a model without tokens has a
    floor of noise, which tells nothing of memorisation, so there no track counts as memorised.

    Allowed since base, for a token model: +.03 nats on the mean of memorised retain (5 % where that is more), +.25
    nats on any single memorised track, +8 % on the mean of the other retain tracks, and ±.15 nats on the held-out
    mean. For a loss without tokens: +5 % on retain alone, as nobody knows the scale of its drift on held-out music.
    The score is the largest of these in units of what is allowed, plus the mean distance of the forget tracks from
    their levels in units of 10 % of it (without levels: minus their mean NLL).

    Args:
        backend: the model to look at, in its state at construction the base.
        forget: clips to forget.
        retain: clips to keep; may be empty.
        holdout: clips the base was never trained on; may be empty.
        seed: chooses which retain clips are looked at.
    """

    def __init__(
        self, backend: Backend, forget: Sequence[Clip], retain: Sequence[Clip], holdout: Sequence[Clip], *, seed: int
    ) -> None:
        self._backend = backend
        self._forget, self._holdout = forget, holdout
        base_holdout = _mean(track_nll(backend, holdout))
        sample = _sample(retain, seed)
        self.classified = len({clip.track for clip in sample})  # tracks
        self.memorised, self._not_memorised = self._classify(sample, base_holdout)
        self.watched = len(self.memorised) + len(self._not_memorised)  # tracks
        self._levels: dict[str, float] = {}
        self.first = Snapshot(
            track_nll(backend, forget), track_nll(backend, self.memorised), track_nll(backend, self._not_memorised),
            base_holdout,
        )  # fmt: skip
        self.holdout_nll = base_holdout
        self.set_levels({} if base_holdout is None else dict.fromkeys(self.first.forget, base_holdout))

    def set_levels(self, levels: Mapping[str, float]) -> None:
        """Give every forget track a target NLL of its own; at first all have the held-out mean."""
        self._levels = dict(levels)
        self.first = self._scored(self.first)

    def look(self) -> Snapshot:
        """NLLs now, and their score."""
        return self._scored(
            Snapshot(
                track_nll(self._backend, self._forget),
                track_nll(self._backend, self.memorised),
                track_nll(self._backend, self._not_memorised),
                _mean(track_nll(self._backend, self._holdout)),
            )
        )

    def _classify(self, sample: Sequence[Clip], holdout: float | None) -> tuple[list[Clip], list[Clip]]:
        """The best known window of each track, up to `WATCHED` of memorised tracks and as many of others."""
        limit = -math.inf
        if self._backend.has_tokens:
            limit = memorised_below(holdout, self._backend.codebook_size)
        best = best_known(self._backend, sample)
        known = [clip for clip, nll in best if nll < limit]
        other = [clip for clip, nll in best if not nll < limit]
        return known[:WATCHED], other[:WATCHED]

    def _range(self, level: float) -> float:
        """What 5 % are taken of: an NLL rises from next to nothing; a loss without tokens from a floor of noise that no
        model can tell, which says nothing of the tracks, so there it is what separates them from the level in base."""
        if self._backend.has_tokens:
            return level
        return max(level - mean(self.first.forget), LEAST_GAP * level)

    def _scored(self, look: Snapshot) -> Snapshot:
        levels = self._levels
        near = {track: TOLERANCE * self._range(level) for track, level in levels.items()}
        rises = {track: _known(value) - self.first.memorised[track] for track, value in look.memorised.items()}
        worst = max(rises, key=rises.__getitem__) if rises else None
        harm = self._harm(look, rises)
        if levels:
            distance = mean({t: abs(_known(value) - levels[t]) / (2 * near[t]) for t, value in look.forget.items()})
        else:
            reached = mean(look.forget)
            distance = -reached if math.isfinite(reached) else math.inf
        score = max(harm.values(), default=0.0) + distance
        return replace(look, target_nll=dict(levels), tolerance=near, harm=harm, worst=worst, score=score)

    def _harm(self, look: Snapshot, rises: Mapping[str, float]) -> dict[str, float]:
        first, harm = self.first, dict[str, float]()
        if rises:
            harm["memorised"] = max(0.0, mean(rises)) / max(MEAN_RISE, SHARE * mean(first.memorised))
            harm["worst"] = max(0.0, *rises.values()) / TRACK_RISE
        if look.not_memorised:
            before = mean(first.not_memorised)
            share = OTHER_SHARE if self._backend.has_tokens else SHARE
            harm["not_memorised"] = max(0.0, _known(mean(look.not_memorised)) - before) / max(share * before, 1e-6)
        if self._backend.has_tokens and first.holdout is not None and look.holdout is not None:
            harm["holdout"] = abs(_known(look.holdout) - first.holdout) / HOLDOUT_DRIFT
        return harm


def _sample(retain: Sequence[Clip], seed: int) -> list[Clip]:
    """Up to `SAMPLE` clips in random order, one of every track before a second one of any."""
    order = torch.randperm(len(retain), generator=torch.Generator().manual_seed(seed)).tolist()
    taken: dict[str, int] = {}
    turns = []
    for clip in (retain[i] for i in order):
        taken[clip.track] = taken.get(clip.track, 0) + 1
        turns.append((taken[clip.track], clip))
    return [clip for _, clip in sorted(turns, key=lambda one: one[0])][:SAMPLE]


@torch.no_grad()
def best_known(backend: Backend, clips: Sequence[Clip]) -> list[tuple[Clip, float]]:
    """Of each track, the clip of the lowest NLL with it, nats per token (in the backend's `unit`)."""
    found: dict[str, tuple[Clip, float]] = {}
    for start in range(0, len(clips), BATCH):
        batch = Batch.of(clips[start : start + BATCH], backend.device)
        for clip, nll in zip(batch.clips, backend.losses(batch).tolist(), strict=True):
            if clip.track not in found or nll < found[clip.track][1]:
                found[clip.track] = (clip, nll)
    return list(found.values())


@torch.no_grad()
def track_nll(backend: Backend, clips: Sequence[Clip]) -> dict[str, float]:
    """Mean NLL per token of each track, nats; a track's windows count by their tokens."""
    sums: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for start in range(0, len(clips), BATCH):
        batch = Batch.of(clips[start : start + BATCH], backend.device)
        counts = backend.token_mask(batch).sum((1, 2)).tolist() if backend.has_tokens else [1] * len(batch)
        for clip, nll, count in zip(batch.clips, backend.losses(batch).tolist(), counts, strict=True):
            sums[clip.track] = sums.get(clip.track, 0.0) + nll * count
            tokens[clip.track] = tokens.get(clip.track, 0) + count
    return {track: total / tokens[track] for track, total in sums.items()}


def mean(values: Mapping[str, float]) -> float:
    """Of at least one figure, each track counting once."""
    return sum(values.values()) / len(values)


def _mean(values: Mapping[str, float]) -> float | None:
    return mean(values) if values else None


def _known(value: float) -> float:
    """A figure that is not finite as infinity, so that no comparison takes it for a small one."""
    return value if math.isfinite(value) else math.inf
