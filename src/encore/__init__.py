"""Encore makes text-to-music models forget tracks, and shows what was forgotten and what was kept."""

from encore.api import hookimpl

__all__ = ["__version__", "hookimpl"]
__version__ = "0.1.0"
