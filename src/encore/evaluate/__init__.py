"""Evaluation: models and tracks in, rows of `metrics.json` out."""
