"""Exact per-sample gradients of a whole model, reduced as they arise, and the Fisher information made of them."""

from encore.curvature.capture import UnsupportedParameterError, capture
from encore.curvature.fisher import backend_fisher, clips_sha256
from encore.curvature.fisher_cache import cached_fisher
from encore.curvature.fisher_file import Fisher, mean_over_weights
from encore.curvature.fisher_stream import CurvatureWarning, fisher
from encore.curvature.gradient import mean_gradient

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
