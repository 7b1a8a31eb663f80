"""What `encore eval` does: models and tracks in, rows of `metrics.json` out."""
