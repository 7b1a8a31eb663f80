"""Exact per-sample gradients of a whole model, reduced as they arise, and the Fisher information made of them."""

from encore.curvature.cached import cached_fisher
from encore.curvature.capture import UnsupportedParameterError, capture
from encore.curvature.clips import backend_fisher, clips_sha256
from encore.curvature.gradient import mean_gradient
from encore.curvature.result import Fisher, mean_over_weights
from encore.curvature.stream import CurvatureWarning, fisher

__all__ = [
    "CurvatureWarning",
    "Fisher",
    "UnsupportedParameterError",
    "backend_fisher",
    "cached_fisher",
    "capture",
    "clips_sha256",
    "fisher",
    "mean_gradient",
    "mean_over_weights",
]
