"""Metrics of what forgetting costs on other music."""
