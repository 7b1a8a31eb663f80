"""How forget, retain and holdout stand during a run: what stopping and the choice of checkpoint rest on.

A forget track is where it should be when its NLL is that of unseen music of the same source: the holdout's mean
under the base model. Gold is never read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from encore.api import Backend, Batch, Clip

TOLERANCE = 0.05  # a track has reached the unseen level at this share below it
LEAST_GAP = 0.1  # share of the unseen level that a loss without tokens is taken to rise by at least
RETAIN_SAMPLE = 16  # clips of retain looked at
BATCH = 16


@dataclass(frozen=True)
class Look:
    """NLLs at one moment, nats/token (in the backend's `unit`).

    Args:
        forget: a track. retain, holdout: means, None where there are no clips.
        level: the unseen level, None without a holdout. score: lower is better; see `Judge`.
        lost: what retain lost since base, 1 being what is allowed. near: how far below the level counts as reached.
    """

    forget: dict[str, float]
    retain: float | None
    holdout: float | None
    level: float | None
    score: float
    lost: float = 0.0
    near: float = 0.0

    @property
    def kept(self) -> bool:
        """Whether retain has lost no more than is allowed."""
        return self.lost <= 1

    def reached(self, track: str) -> bool:
        """Whether a track is to the model like unseen music."""
        return self.level is not None and self.forget[track] >= self.level - self.near

    def rank(self, stop: str) -> tuple[bool, float]:
        """Lower is better: the score; for a run that stops at the target, all tracks there before any other state."""
        short = stop == "target" and not all(self.reached(track) for track in self.forget)
        return (short, self.score)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Judge:
    """Looks at a model on the same clips every time.

    Args:
        backend: the model to look at, in its state at construction the base.
        seed: chooses which retain clips are looked at.
    """

    def __init__(
        self, backend: Backend, forget: Sequence[Clip], retain: Sequence[Clip], holdout: Sequence[Clip], *, seed: int
    ) -> None:
        self._backend = backend
        self._forget, self._holdout = forget, holdout
        order = torch.randperm(len(retain), generator=torch.Generator().manual_seed(seed)).tolist()
        self._retain = [retain[i] for i in order[:RETAIN_SAMPLE]]
        self.retain_tracks = len({clip.track for clip in self._retain})  # that a look's retain is the mean of
        self.level: float | None = None
        self._base_retain = self._near = 0.0
        first = self.look()
        self.level = first.holdout
        if self.level is not None:
            self._near = TOLERANCE * self._range(self.level, first.forget)
        self._base_retain = first.retain or 0.0
        self.first = self._scored(first)

    def look(self) -> Look:
        """NLLs now, and their score."""
        forget = track_nll(self._backend, self._forget)
        retain = _mean(track_nll(self._backend, self._retain))
        holdout = _mean(track_nll(self._backend, self._holdout))
        return self._scored(Look(forget, retain, holdout, self.level, 0.0))

    def _range(self, level: float, forget: dict[str, float]) -> float:
        """What 5 % are taken of: an NLL rises from next to nothing; a loss without tokens from a floor of noise that no
        model can tell, which says nothing of the tracks, so there it is what separates them from the level in base."""
        if self._backend.has_tokens:
            return level
        return max(level - sum(forget.values()) / len(forget), LEAST_GAP * level)

    def _scored(self, look: Look) -> Look:
        """The score: how far forget is from the unseen level, and what retain lost, each in units of what is allowed.

        That is 10 % of the level either way, as a mean over tracks (for a loss that is not in nats, of what it has to
        rise), and 5 % of base's retain NLL or 0.05 nats, whichever is more (5 % alone for such a loss). Without a
        holdout there is no level, and what forget gained is taken off.
        """
        allowed = max(0.05 if self._backend.has_tokens else 1e-6, 0.05 * self._base_retain)
        lost = max(0.0, (look.retain or 0.0) - self._base_retain) / allowed
        values = list(look.forget.values())
        if self.level is None:
            score = lost - sum(values) / len(values)
        else:
            score = lost + sum(abs(value - self.level) for value in values) / len(values) / (2 * self._near)
        return replace(look, level=self.level, score=score, lost=lost, near=self._near)


@torch.no_grad()
def track_nll(backend: Backend, clips: Sequence[Clip]) -> dict[str, float]:
    """Mean NLL a token of each track, nats; a track's windows count by their tokens."""
    sums: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for start in range(0, len(clips), BATCH):
        batch = Batch.of(clips[start : start + BATCH], backend.device)
        counts = backend.token_mask(batch).sum((1, 2)).tolist() if backend.has_tokens else [1] * len(batch)
        for clip, nll, count in zip(batch.clips, backend.losses(batch).tolist(), counts, strict=True):
            sums[clip.track] = sums.get(clip.track, 0.0) + nll * count
            tokens[clip.track] = tokens.get(clip.track, 0) + count
    return {track: total / tokens[track] for track, total in sums.items()}


def _mean(values: dict[str, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None
