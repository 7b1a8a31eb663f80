"""How a run tells the world how far it is. The library stays silent; the command line prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Reporter:
    """Silent; override what you want to hear."""

    def note(self, text: str) -> None:
        """One sentence a person should know."""

    def progress(self, stage: str, done: int, of: int, info: Mapping[str, Any] | None = None) -> None:
        """`done` of `of` units of a stage; `info` holds figures worth showing beside."""
