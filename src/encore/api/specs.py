"""The Specs that plugins register. They are plain data, and import nothing of the class they describe."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import ClassVar, Literal

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

    `needs`: retain (clips to keep), reference (the base model), reference_nll (of the base model only its NLL of forget
    clips, for which a token model needs no copy of it), logits (a token model), holdout (held-out clips), fisher (it
    may call `Session.fisher`), hidden (hidden states, `Backend.hidden`), predictions (a model without tokens; it may
    call `Backend.predictions`).
    """

    kind = "method"
    known_needs = frozenset(
        {"retain", "reference", "reference_nll", "logits", "holdout", "fisher", "hidden", "predictions"}
    )


class BackendSpec(Spec):
    """A model family: loads, trains, generates and saves."""

    kind = "backend"


@dataclass(frozen=True)
class RowSpec:
    """A row that a metric returns, and what it means. Tables, report, findings, leaderboard and docs read it from here.

    Args:
        name: of the row (`Result.metric`). A trailing `*` stands for an embedder's name or nothing: `fad*` is `fad`
            and `fad_clap`.
        set: "forget", "retain", "holdout" or "".
        label: the row's name in tables.
        plain: the same for readers who know no machine learning; default: the label.
        short: one or two words for it, as the head of a column; default: the row's name.
        direction: which figure is good in the unlearned model: "lower", "higher", or near that of "gold" or "base".
            It tells which track is the worst; empty where no track is.
        target: what the unlearned model must reach, in words; empty for none.
        judge: whether it does: the name of a rule in `encore.results.rules`, or "package.module:function" for one like
            them.
        column: its title in the leaderboard of `encore bench`; empty for no column.
        similarity: of rows of tracks whose generations are similar to them, "feature" (harmony, melody, rhythm: two
            together count) or "copy" (codes, fingerprints).
        changed_model: whether a changed copy of the model was measured (rounded weights), not the model itself.
    """

    name: str
    set: str
    label: str
    plain: str = ""
    short: str = ""
    direction: Literal["", "lower", "higher", "gold", "base"] = ""
    target: str = ""
    judge: str = ""
    column: str = ""
    similarity: Literal["", "feature", "copy"] = ""
    changed_model: bool = False


@dataclass(frozen=True)
class MetricSpec(Spec):
    """A metric. `needs`: the roles and inputs without which nothing can be measured.

    Args:
        full: measured by `encore eval` only with `--full`, or where `--metrics` names it. Set it for metrics that take
            more than a few seconds on the embedded model: attacks, many generations.
        version: of the metric's definition. Raise it when the same model gets another figure: each row of
            `metrics.json` records it, and rows of different versions do not compare.
        rows: what its rows mean, in reading order. A row that is not declared is shown by its name, without a target.
        trains: whether it trains copies of the models, or prompts for them: such metrics are measured last.
    """

    full: bool = False
    version: int = 1
    rows: tuple[RowSpec, ...] = ()
    trains: bool = False

    kind = "metric"
    known_needs = frozenset({"embedder", "gold", "gold2", "holdout", "retain", "base", "logits"})


class EmbedderSpec(Spec):
    """An audio embedder: waveforms to vectors."""

    kind = "embedder"
