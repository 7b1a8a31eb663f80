"""The clips of a run, and the order in which the loop draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from encore.api import Clip


@dataclass
class Clips:
    """The clips of a run. `holdout` may be empty; `retain` may be empty where the method does not need it."""

    forget: Sequence[Clip]
    retain: Sequence[Clip]
    holdout: Sequence[Clip]


class ShuffledSampler:
    """Draws clips without replacement, in passes over the set, each pass shuffled."""

    def __init__(self, generator: torch.Generator, queue: Sequence[int] = ()) -> None:
        self.generator = generator
        self.queue = list(queue)

    def take(self, allowed: Sequence[int], count: int) -> list[int]:
        """`count` of the allowed indices (all of them where there are fewer)."""
        if count >= len(allowed):
            return list(allowed)
        taken: list[int] = []
        permitted = set(allowed)
        while len(taken) < count:
            if not self.queue:
                order = torch.randperm(len(allowed), generator=self.generator).tolist()
                self.queue = [allowed[i] for i in order]
            index = self.queue.pop()
            if index in permitted and index not in taken:
                taken.append(index)
        return taken
