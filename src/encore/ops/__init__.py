"""Reductions of per-sample gradients: torch ops, each with a pure torch reference ("twin"), some with native kernels.

Importing this package imports no torch. `python -m encore.ops` shows which kernel each op uses here, and why.
"""
