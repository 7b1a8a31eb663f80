"""Exact per-sample gradients of a whole model, reduced as they arise, and the Fisher information made of them."""

from encore.curvature.capture import UnsupportedParameterError, capture

__all__ = ["UnsupportedParameterError", "capture"]
