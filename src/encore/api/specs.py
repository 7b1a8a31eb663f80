"""The Specs that plugins register. They are plain data, and import nothing of the class they describe."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import ClassVar

NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")  # also safe as a file name, a table's cell, and in HTML


def faulty_name(name: object) -> str:
    """Why a name can't be registered by a plugin; empty where it can."""
    if isinstance(name, str) and NAME.fullmatch(name):
        return ""
    return f"name {str(name)[:80]!r} is not 1 to 64 lower-case letters, digits and inner dashes or underscores"


@dataclass(frozen=True)
class Spec:
    """Describes one thing that a plugin registers. Listing it imports nothing; `target` is imported on first use.

    Args:
        name: what the user types, also used in file and folder names; see `NAME`.
        summary: one line for the listing.
        target: "package.module:Class".
        requires: required packages, as distribution names ("librosa"); checked before the import.
        needs: required inputs; see the subclass.
        install: the command that installs `requires`, where `pip install` with these names does not; shown verbatim.

    Raises:
        ValueError: `needs` has an unknown item.
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
        """Why its fields are invalid, in one clause; empty where they are valid."""
        texts: dict[str, object] = {"summary": self.summary, "target": self.target, "install": self.install}
        invalid = [name for name, value in texts.items() if not isinstance(value, str)]
        requires: object = self.requires
        if not (isinstance(requires, (tuple, list)) and all(isinstance(name, str) for name in requires)):
            invalid.append("requires")
        return faulty_name(self.name) or (f"{invalid[0]} has the wrong type" if invalid else "")


class MethodSpec(Spec):
    """An unlearning method.

    `needs`: retain (clips to keep), reference (the base model), logits (a token model), holdout (held-out clips),
    fisher (it may call `Session.fisher`).
    """

    kind = "method"
    known_needs = frozenset({"retain", "reference", "logits", "holdout", "fisher", "hidden"})


class BackendSpec(Spec):
    """A model family: loads, trains, generates and saves."""

    kind = "backend"


@dataclass(frozen=True)
class MetricSpec(Spec):
    """A metric. `needs`: the roles and inputs without which nothing can be measured.

    Args:
        full: measured by `encore eval` only with `--full`, or where `--metrics` names it. Set it for metrics that take
            more than a few seconds on the embedded model: attacks, many generations.
        version: of the metric's definition. Raise it when the same model gets another figure: each row of
            `metrics.json` records it, and rows of different versions do not compare.
    """

    full: bool = False
    version: int = 1

    kind = "metric"
    known_needs = frozenset({"generations", "embedder", "gold", "gold2", "holdout", "retain", "base", "logits"})


class EmbedderSpec(Spec):
    """An audio embedder: waveforms to vectors."""

    kind = "embedder"
