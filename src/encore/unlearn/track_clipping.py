"""Per-track gradient clipping.

As DP-SGD clips the gradient of an example (Abadi et al., arXiv 1607.00133, algorithm 1, without its noise), this clips
the gradient of a track: the sum over its clips in the step is scaled to norm C where it is longer. A step's gradient is
1/N Σ_t min(1, C / ‖g_t‖) g_t with g_t = Σ_{n of track t} ∇ℓ_n, and N the number of clips; C = ∞ is no clipping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from encore import distributed
from encore.api import Clip
from encore.curvature import UnsupportedParameterError, capture
from encore.curvature.capture import MIXED
from encore.curvature.hooks import set_aside_grads
from encore.errors import PluginError

Compute = Callable[[Sequence[Clip]], Tensor]
"""Clips -> one loss per clip, [n]."""


class TrackClipping:
    """Adds clipped gradients to `.grad`.

    Tracks with one clip in the step share micro-batches: their norms, and the weighted sum, come from one backward
    pass. A track with several clips is processed alone, in as many micro-batches as needed, because the norm of a sum
    needs the whole sum. So the micro-batch does not change the result. The first micro-batch of each loss takes one
    more backward pass, which checks that each clip's loss depends on that clip alone. Of several processes each takes
    some of the tracks, with all their clips.

    Args:
        module: the trained module.
        most: C, the norm that a track's gradient is clipped to.
        generator: random source of the losses; restored where losses have to be computed again.
        record: called once per loss whose clips must be processed one by one, with the reason.
    """

    def __init__(
        self,
        module: nn.Module,
        most: float,
        generator: torch.Generator,
        record: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> None:
        self._module, self._most = module, most
        self._generator, self._record = generator, record
        self._weights = [weight for weight in module.parameters() if weight.requires_grad]
        self._separable: set[str] = set()  # losses whose clips were found independent
        self._one_by_one: set[str] = set()

    def add(self, name: str, compute: Compute, clips: Sequence[Clip], micro: int) -> float:
        """Add the gradient of one loss over a step's clips to `.grad`; returns the mean loss.

        In one of several processes both are its share of the sum.

        Args:
            name: of the loss, for messages.
            compute: the loss.
            clips: of the step.
            micro: clips per forward pass.

        Raises:
            PluginError: the loss of a clip depends on other clips.
        """
        tracks: dict[str, list[Clip]] = {}
        for clip in clips:
            tracks.setdefault(clip.track, []).append(clip)
        own = distributed.share([*tracks.values()])
        if not own:
            with torch.no_grad():
                compute(clips[:1])  # draws the same random numbers as the other processes
        single = [part[0] for part in own if len(part) == 1]
        total = 0.0
        for start in range(0, len(single), micro):
            total += self._add_single(name, compute, single[start : start + micro], len(clips))
        for part in own:
            if len(part) > 1:
                total += self._add_track(compute, part, len(clips), micro)
        return total / len(clips)

    def _add_single(self, name: str, compute: Compute, clips: Sequence[Clip], count: int) -> float:
        """Clips of different tracks, in one pass."""
        if len(clips) > 1 and name not in self._one_by_one:
            random_state = self._generator.get_state()
            try:
                return self._add_captured(name, compute, clips, count)
            except UnsupportedParameterError as error:
                if MIXED in error.reasons.values():
                    raise PluginError(
                        f"{name} mixes its clips: {next(iter(error.reasons))} receives several clips in one sample",
                        "per-track clipping needs a loss that depends on one clip alone; leave it out",
                    ) from error
                self._generator.set_state(random_state)
                self._one_by_one.add(name)
                self._record({"event": "one clip per pass", "loss": name, "why": error.message})
        return sum(self._add_track(compute, [clip], count, 1) for clip in clips)

    def _add_captured(self, name: str, compute: Compute, clips: Sequence[Clip], count: int) -> float:
        with capture(self._module, norms=True, keep=True) as captured:
            losses = compute(clips)
            refused = {} if name in self._separable else captured.probe(losses)
            if refused:
                raise UnsupportedParameterError(refused)
            losses.sum().backward()
        self._separable.add(name)
        sums = captured.weighted_sum(self._scale(captured.sq_norms.sqrt()) / count)
        for key, weight in captured.parameters.items():
            _add_to_grad(weight, sums[key])
        return float(losses.detach().sum())

    def _add_track(self, compute: Compute, clips: Sequence[Clip], count: int, micro: int) -> float:
        """The clips of one track."""
        total = 0.0
        with set_aside_grads(self._weights):
            for start in range(0, len(clips), micro):
                loss = compute(clips[start : start + micro]).sum()
                loss.backward()
                total += loss.item()
            grads = [(weight, weight.grad) for weight in self._weights if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm([grad for _, grad in grads])
        for weight, grad in grads:
            _add_to_grad(weight, grad * (self._scale(norm) / count))
        return total

    def _scale(self, norms: Tensor) -> Tensor:
        return (self._most / norms).clamp(max=1)


def _add_to_grad(weight: Tensor, grad: Tensor) -> None:
    grad = grad.to(weight.dtype)
    weight.grad = grad if weight.grad is None else weight.grad + grad
