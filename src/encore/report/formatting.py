"""Figures as a reader sees them."""

from __future__ import annotations


def number(value: float | None) -> str:
    """A figure with three digits, no more."""
    if value is None:
        return "–"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e5):
        return f"{value:.2e}"
    return f"{value:.3f}" if size < 1 else f"{value:.2f}" if size < 100 else f"{value:.0f}"


def percent(share: float | None) -> str:
    """A share, with a space before the sign that does not break."""
    return "–" if share is None else f"{share:.0%}".replace("%", "\N{NO-BREAK SPACE}%")


def unit_text(unit: str) -> str:
    """A row's unit as it is written in a sentence."""
    return unit.replace("/", " per ")
