"""Reductions of per-sample gradients: ops of torch's dispatcher, each with a readable twin, some with native kernels.

Importing this package imports no torch. `python -m encore.ops` tells which kernel each op would use here, and why.
"""
