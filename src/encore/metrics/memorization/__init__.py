"""Metrics of memorisation: likelihood, generations, distance to the gold model."""
