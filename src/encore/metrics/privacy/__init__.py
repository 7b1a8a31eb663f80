"""Metrics of privacy: membership inference and distances to gold."""
