"""The interface for progress and notes. The library prints nothing; the command line overrides it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Reporter:
    """Ignores everything; override the methods you need."""

    def note(self, text: str) -> None:
        """Receive one sentence for the user."""

    def progress(self, stage: str, done: int, of: int, info: Mapping[str, Any] | None = None) -> None:
        """Receive progress: `done` of `of` units of a stage, with figures to show in `info`."""
