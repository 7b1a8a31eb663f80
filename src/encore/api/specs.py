"""The Specs that plugins register: data alone, which imports nothing of what it announces."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import ClassVar

NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")  # also safe as a file name, a table's cell, and in HTML


def faulty_name(name: object) -> str:
    """What is wrong with the name of something that a plugin registers; empty where nothing is."""
    if isinstance(name, str) and NAME.fullmatch(name):
        return ""
    return f"name {str(name)[:80]!r} is not 1 to 64 lower-case letters, digits and inner dashes or underscores"


@dataclass(frozen=True)
class Spec:
    """How a plugin announces one thing. Listing it imports nothing; `target` is imported on first use.

    Args:
        name: what the user types, and what files and folders are named after: see `NAME`.
        summary: one line for the listing.
        target: "package.module:Class".
        requires: what must be importable for it to work, as distribution names ("librosa"); checked before the import.
        needs: what must be there for it to work; see the subclass.
        install: the command that installs what it requires, where `pip install` and its names do not; shown as it is.
    """

    kind: ClassVar[str] = ""
    known_needs: ClassVar[frozenset[str]] = frozenset()

    name: str
    summary: str
    target: str
    requires: tuple[str, ...] = ()
    needs: AbstractSet[str] = frozenset()
    install: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs", frozenset(self.needs))
        unknown = self.needs - self.known_needs
        if unknown:
            raise ValueError(
                f"{self.kind} {self.name!r} needs {sorted(unknown)}, but a {self.kind} can only need "
                f"{sorted(self.known_needs)}"
            )

    def fault(self) -> str:
        """What is wrong with its fields, in one clause; empty where nothing is."""
        texts: dict[str, object] = {"summary": self.summary, "target": self.target, "install": self.install}
        wrong = [name for name, value in texts.items() if not isinstance(value, str)]
        required: object = self.requires
        if not (isinstance(required, (tuple, list)) and all(isinstance(name, str) for name in required)):
            wrong.append("requires")
        return faulty_name(self.name) or (f"{wrong[0]} is not of the type that it must have" if wrong else "")


class MethodSpec(Spec):
    """An unlearning method.

    `needs`: retain (clips to keep), reference (the base model), logits (a token model), holdout (clips never heard),
    fisher (it may call `Session.fisher`).
    """

    kind = "method"
    known_needs = frozenset({"retain", "reference", "logits", "holdout", "fisher", "hidden"})


class BackendSpec(Spec):
    """A model family: loads, trains, plays and saves."""

    kind = "backend"


@dataclass(frozen=True)
class MetricSpec(Spec):
    """A metric. `needs`: roles and tools without which there is nothing to measure.

    Args:
        full: `encore eval` measures it with `--full`, or where `--metrics` names it, and not by default. Set it for
            what takes more than a few seconds on the embedded model: attacks, many generations.
        version: of the metric's definition. Raise it when the same model gets another figure: each row of
            `metrics.json` has it, and rows of different versions do not compare.
    """

    full: bool = False
    version: int = 1

    kind = "metric"
    known_needs = frozenset({"generations", "embedder", "gold", "gold2", "holdout", "retain", "base", "logits"})


class EmbedderSpec(Spec):
    """An audio embedder: waveforms to vectors."""

    kind = "embedder"
