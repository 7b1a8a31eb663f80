"""What a diffusion model is trained to predict, read from its scheduler's configuration.

An objective defines four things: how noise levels are distributed in training, the network's input at a level, its
timestep, and the target of its prediction. The loss is the mean squared error of the prediction, unweighted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from encore.errors import InputError


class Objective(ABC):
    """Levels are [N]; latents and noise [N, K, T]."""

    @abstractmethod
    def level(self, share: Tensor) -> Tensor:
        """The noise level below which this share of training lies: the quantile function, from (0, 1)."""

    @abstractmethod
    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The network's input."""

    def noise_between(self, noisy: Tensor, latents: Tensor, level: Tensor) -> Tensor:
        """The noise ε for which `noisy(latents, ε, level)` is the given input; `noisy` is affine in both.

        Its log-density, -‖ε‖² / 2 and a constant, is that of the input given the latents.
        """
        zero = torch.zeros_like(latents)
        scale = self.noisy(zero, torch.ones_like(latents), level)
        return (noisy - self.noisy(latents, zero, level)) / scale

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The target of the network's prediction."""

    @abstractmethod
    def timestep(self, level: Tensor) -> Tensor:
        """The network's timestep at a level, [N]."""


class Preconditioned(Objective):
    """F(c_in (x + σ ε); c_noise(σ)) should be (x - c_skip (x + σ ε)) / c_out (Karras et al., arXiv 2206.00364, eq. 8).

    With v-prediction c_out is negative, and for σ_data = 1 the target is v = cos(φ) ε - sin(φ) x, φ = atan σ (Salimans
    and Ho, arXiv 2202.00512, appendix D): what Stable Audio is trained on, at φ uniform over a quarter turn (Evans et
    al., arXiv 2407.14358). Where c_noise is the EDM's, log σ is normal, with the mean and deviation of its table 1.
    """

    MEAN, DEVIATION = -1.2, 1.2  # of log σ: P_mean and P_std of EDM's table 1
    LAST = 1e-3  # share of levels at either end that are taken as if they were at LAST: tan has no end

    def __init__(self, scheduler: Any) -> None:
        signs = {"v_prediction": -1.0, "epsilon": 1.0}
        self._sign = signs[_known(scheduler.config.prediction_type, signs)]
        self._data = float(scheduler.config.sigma_data)
        self._ends = float(scheduler.config.sigma_min), float(scheduler.config.sigma_max)
        self._scheduler = scheduler
        quarter = float(scheduler.precondition_noise(torch.tensor(1.0)))
        self._by_angle = math.isclose(quarter, 0.5, rel_tol=1e-5)  # 2/π atan 1; the EDM's ¼ log 1 is 0

    def level(self, share: Tensor) -> Tensor:
        if self._by_angle:
            return (share.clamp(self.LAST, 1 - self.LAST) * (math.pi / 2)).tan()
        return (self.MEAN + self.DEVIATION * torch.special.ndtri(share)).exp().clamp(*self._ends)

    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        sigma = level[:, None, None]
        return (latents + sigma * noise) / (sigma**2 + self._data**2).sqrt()

    def target(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        sigma = level[:, None, None]
        scale = self._sign / (self._data * (sigma**2 + self._data**2).sqrt())
        return (sigma * latents - self._data**2 * noise) * scale

    def timestep(self, level: Tensor) -> Tensor:
        return self._scheduler.precondition_noise(level)


class RectifiedFlow(Objective):
    """v((1 - t) x + t ε; t) should be ε - x (Liu et al., arXiv 2209.03003, eq. 1); logit t is normal (Esser et al.,
    arXiv 2403.03206, eq. 19).

    Args:
        mean, deviation: of logit t.
    """

    def __init__(self, scheduler: Any, *, mean: float, deviation: float) -> None:
        self._steps = scheduler.config.num_train_timesteps
        self._mean, self._deviation = mean, deviation

    def level(self, share: Tensor) -> Tensor:
        return (self._mean + self._deviation * torch.special.ndtri(share)).sigmoid()

    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return latents + level[:, None, None] * (noise - latents)

    def target(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return noise - latents

    def timestep(self, level: Tensor) -> Tensor:
        return level * self._steps


class Discrete(Objective):
    """F(√ā_t x + √(1 - ā_t) ε; t) should be ε (Ho et al., arXiv 2006.11239, eq. 14), v = √ā_t ε - √(1 - ā_t) x
    (Salimans and Ho, arXiv 2202.00512), or x, as the scheduler's `prediction_type` says; t is uniform.

    Levels are indices of timesteps.
    """

    def __init__(self, scheduler: Any) -> None:
        self._kind = _known(scheduler.config.prediction_type, ("epsilon", "v_prediction", "sample"))
        self._kept = scheduler.alphas_cumprod.double()

    def level(self, share: Tensor) -> Tensor:
        return (share * len(self._kept)).long().clamp(0, len(self._kept) - 1)

    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        signal, spread = self._scales(latents, level)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        if self._kind == "epsilon":
            return noise
        if self._kind == "sample":
            return latents
        signal, spread = self._scales(latents, level)
        return signal * noise - spread * latents

    def timestep(self, level: Tensor) -> Tensor:
        return level

    def _scales(self, latents: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        kept = self._kept[level.cpu()][:, None, None].to(latents.device)
        return kept.sqrt().to(latents.dtype), (1 - kept).sqrt().to(latents.dtype)


def objective(scheduler: Any, *, mean: float = 0.0, deviation: float = 1.0) -> Objective:
    """The training objective of a model with this diffusers scheduler.

    Args:
        mean, deviation: of logit t, for a flow; its scheduler does not know how t was drawn in training.

    Raises:
        InputError: the scheduler is of none of the three kinds.
    """
    if hasattr(scheduler, "precondition_noise"):
        return Preconditioned(scheduler)
    if hasattr(scheduler, "alphas_cumprod"):
        return Discrete(scheduler)
    if type(scheduler).__name__.startswith("FlowMatch"):
        return RectifiedFlow(scheduler, mean=mean, deviation=deviation)
    raise InputError(f"the scheduler {type(scheduler).__name__} does not say what the model was trained to predict")


def _known(kind: str, kinds: Any) -> str:
    if kind not in kinds:
        raise InputError(f"the scheduler's prediction_type {kind!r} is not one of {', '.join(kinds)}")
    return kind
