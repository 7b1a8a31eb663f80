"""Per-track clipping: in no step does one track's gradient weigh more than a given norm.

As DP-SGD clips the gradient of an example (Abadi et al., arXiv 1607.00133, algorithm 1, without its noise), here that
of a track: the sum over its clips in the step is scaled to norm C where it is longer. A step's gradient is then
1/N Σ_t min(1, C / ‖g_t‖) g_t with g_t = Σ_{n of track t} ∇ℓ_n, and N the number of clips; C = ∞ is no clipping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from encore.api import Clip
from encore.curvature import UnsupportedParameterError, capture
from encore.curvature.capture import MIXED
from encore.curvature.hooks import set_aside_grads
from encore.errors import PluginError

Ask = Callable[[Sequence[Clip]], Tensor]
"""Clips -> one loss a clip, [n]."""


class TrackClipping:
    """Adds clipped gradients to `.grad`.

    A track with one clip in the step shares a micro-batch with others: their norms, and the weighted sum, come from
    what one backward pass left behind. A track with several clips is gone through by itself, however many micro-batches
    that takes, for the norm of a sum needs all of it. So the micro-batch changes nothing. The first micro-batch of each
    loss takes one backward pass more, which shows whether its clips are kept apart.

    Args:
        module: what is trained.
        most: C, the norm that a track's gradient is clipped to.
        generator: what losses draw from; put back where losses have to be asked for again.
        record: told, once a loss, that its clips have to be gone through one by one, and why.
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
        self._apart: set[str] = set()  # losses that were seen to keep clips apart
        self._one_by_one: set[str] = set()

    def add(self, name: str, ask: Ask, clips: Sequence[Clip], micro: int) -> float:
        """Add one loss's gradient over a step's clips to `.grad`; the mean loss.

        Args:
            name: the loss's, for messages.
            micro: clips a forward pass.

        Raises:
            PluginError: the loss of a clip depends on the other clips beside it.
        """
        tracks: dict[str, list[Clip]] = {}
        for clip in clips:
            tracks.setdefault(clip.track, []).append(clip)
        single = [own[0] for own in tracks.values() if len(own) == 1]
        total = 0.0
        for start in range(0, len(single), micro):
            total += self._add_single(name, ask, single[start : start + micro], len(clips))
        for own in tracks.values():
            if len(own) > 1:
                total += self._add_track(ask, own, len(clips), micro)
        return total / len(clips)

    def _add_single(self, name: str, ask: Ask, clips: Sequence[Clip], count: int) -> float:
        """Clips of as many tracks, in one pass."""
        if len(clips) > 1 and name not in self._one_by_one:
            drawn = self._generator.get_state()
            try:
                return self._add_captured(name, ask, clips, count)
            except UnsupportedParameterError as error:
                if MIXED in error.reasons.values():
                    raise PluginError(
                        f"{name} does not keep its clips apart: {next(iter(error.reasons))} sees several at once",
                        "per-track clipping needs a loss that depends on its own clip alone; leave it out",
                    ) from error
                self._generator.set_state(drawn)
                self._one_by_one.add(name)
                self._record({"event": "one clip a pass", "loss": name, "why": error.message})
        return sum(self._add_track(ask, [clip], count, 1) for clip in clips)

    def _add_captured(self, name: str, ask: Ask, clips: Sequence[Clip], count: int) -> float:
        with capture(self._module, norms=True, keep=True) as taken:
            losses = ask(clips)
            refused = {} if name in self._apart else taken.probe(losses)
            if refused:
                raise UnsupportedParameterError(refused)
            losses.sum().backward()
        self._apart.add(name)
        summed = taken.weighted_sum(self._scale(taken.sq_norms.sqrt()) / count)
        for key, weight in taken.parameters.items():
            _add_to_grad(weight, summed[key])
        return float(losses.detach().sum())

    def _add_track(self, ask: Ask, clips: Sequence[Clip], count: int, micro: int) -> float:
        """One track's clips, gone through by themselves."""
        total = 0.0
        with set_aside_grads(self._weights):
            for start in range(0, len(clips), micro):
                loss = ask(clips[start : start + micro]).sum()
                loss.backward()
                total += loss.item()
            own = [(weight, weight.grad) for weight in self._weights if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm([grad for _, grad in own])
        for weight, grad in own:
            _add_to_grad(weight, grad * (self._scale(norm) / count))
        return total

    def _scale(self, norms: Tensor) -> Tensor:
        return (self._most / norms).clamp(max=1)


def _add_to_grad(weight: Tensor, grad: Tensor) -> None:
    grad = grad.to(weight.dtype)
    weight.grad = grad if weight.grad is None else weight.grad + grad
