"""The table of rows that a decision rests on, each judged against its target.

What a row means is declared by its metric (`RowSpec`). Reads rows alone, without torch, so that a report can be made of
a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from encore import plugins
from encore.api import Result, Role, RowSpec
from encore.results.golds import golds_that_know
from encore.results.rules import Figures, ratios, rule


@dataclass(frozen=True)
class SummaryRow:
    """One line of the table.

    Args:
        spec: what the row means; of an embedder's row, with that row's own name and label.
        figures: role -> its result, also those without a figure, whose `why` says why.
        met: whether the unlearned model meets the target; None without a target, where a figure it needs is missing
            or of a gold that knows the tracks, or where the test could not fail: it finds nothing in base either, or
            the tracks are too few.
        worst: the worst track of the unlearned model (see `RowSpec.direction`) and its figure.
        lacks: where it has a target and is not judged: the role whose figure is missing, or shows nothing.
        no_golds: the golds that know the tracks, with which a line of the forget set is not compared.
        fault: where its rule failed: one sentence that names the rule and the error.
    """

    spec: RowSpec
    figures: Mapping[str, Result]
    met: bool | None = None
    worst: tuple[str, float] | None = None
    lacks: str = ""
    no_golds: frozenset[str] = frozenset()
    fault: str = ""

    @property
    def label(self) -> str:
        return self.spec.label

    @property
    def metric(self) -> str:
        return self.spec.name

    @property
    def set(self) -> str:
        return self.spec.set

    @property
    def target(self) -> str:
        return self.spec.target

    @property
    def measured(self) -> dict[str, Result]:
        """Role -> its result, those with a figure alone."""
        return {role: row for role, row in self.figures.items() if row.value is not None}


def summary(results: Sequence[Result]) -> list[SummaryRow]:
    """The lines in reading order: declared rows that have a label, then undeclared rows of plugins."""
    groups: dict[tuple[str, str], dict[str, Result]] = {}
    for row in results:
        groups.setdefault((row.metric, row.set), {})[row.model] = row
    known = frozenset(golds_that_know({(row.metric, row.model, row.set): row for row in results}))
    specs = row_specs()
    lines: list[tuple[int, SummaryRow]] = []
    for (metric, clips), figures in groups.items():
        spec = spec_of(metric, clips, specs)
        if spec is not None:
            order, spec = specs.index(spec), named(spec, metric)
        elif _of_plugin(metric):
            label = f"{metric}, {clips}" if clips else metric
            order, spec = len(specs), RowSpec(metric, clips, label, column=label)
        if spec is not None and spec.label:
            lines.append((order, _judged(spec, figures, known if clips == "forget" else frozenset())))
    return [line for _, line in sorted(lines, key=lambda pair: pair[0])]


def row_specs() -> list[RowSpec]:
    """What the installed metrics declare of their rows, in reading order."""
    return [row for entry in plugins.metrics() for row in entry.spec.rows]


def spec_of(metric: str, clips: str, specs: Sequence[RowSpec] | None = None) -> RowSpec | None:
    """What is declared of a row; None where nothing is. The longest of several names with a `*` counts.

    Args:
        metric: the row's name.
        clips: its set.
        specs: to look in; default: those of all installed metrics.
    """
    known = [row for row in (row_specs() if specs is None else specs) if row.set == clips]
    exact = [row for row in known if row.name == metric]
    starred = [row for row in known if row.name[-1:] == "*" and f"{metric}_".startswith(f"{row.name[:-1]}_")]
    return next(iter([*exact, *sorted(starred, key=lambda row: -len(row.name))]), None)


def named(spec: RowSpec, metric: str) -> RowSpec:
    """The spec with a row's own name and label: "FAD, retain (clap)" of `fad_clap` for that of `fad*`."""
    suffix = metric.removeprefix(spec.name.removesuffix("*")).strip("_").replace("_", " ")
    return replace(spec, name=metric, label=spec.label + (f" ({suffix})" if suffix and spec.label else ""))


def targets_met(table: Sequence[SummaryRow]) -> dict[str, tuple[int, int]]:
    """How many targets the unlearned model meets, and how many could be judged.

    Args:
        table: of `summary`.

    Returns:
        "retain" (targets on retain tracks) and "forget" (all others) -> (met, judged).
    """
    judged: dict[str, list[bool]] = {"forget": [], "retain": []}
    for line in table:
        if line.target and line.met is not None:
            judged["retain" if line.set == "retain" else "forget"].append(line.met)
    return {name: (sum(met), len(met)) for name, met in judged.items()}


def _judged(spec: RowSpec, figures: Mapping[str, Result], no_golds: frozenset[str]) -> SummaryRow:
    line = SummaryRow(spec, figures, no_golds=no_golds)
    met, lacks, fault = None, "", ""
    compared = {role: row for role, row in line.measured.items() if role not in no_golds}
    try:
        if spec.judge and "gold" in no_golds and _is_relative_to_gold(spec):
            lacks = "gold"
        elif spec.judge:
            met = plugins.third_party(_verdict, spec, compared)
    except plugins.Broken as broken:
        if isinstance(broken.error, KeyError) and broken.error.args[:1] and broken.error.args[0] in get_args(Role):
            lacks = broken.error.args[0]  # a role it compares with has no figure, or none that says anything
        else:
            fault = f"{line.label} was not judged: the rule {spec.judge!r}{_source(spec)} failed: {broken}"
    return replace(line, met=met, worst=_worst(spec, line.measured), lacks=lacks, fault=fault)


def _verdict(spec: RowSpec, figures: Figures) -> bool:
    met = rule(spec.judge)(figures)
    if met not in (True, False):
        raise TypeError(f"it returned {met!r}, not True or False")
    return bool(met)


def _is_relative_to_gold(spec: RowSpec) -> bool:
    """Whether a row's figures are themselves comparisons with gold."""
    relative = (entry.spec.rows for entry in plugins.metrics() if "gold" in entry.spec.needs)
    return any(spec_of(spec.name, spec.set, rows) is not None for rows in relative)


def _source(spec: RowSpec) -> str:
    """The plugin that a row's rule is of, as the end of a phrase; empty for one of `encore.results.rules`."""
    sources = [entry.source for entry in plugins.metrics() if spec.judge in [row.judge for row in entry.spec.rows]]
    return f" of {sources[0]}" if sources and ":" in spec.judge else ""


def _of_plugin(metric: str) -> bool:
    """Whether a row is none of Encore's own metrics': a row's name begins with the first word of its metric's."""
    names = {entry.spec.name: entry.source.distribution == plugins.OWN for entry in plugins.metrics()}
    first_words = {name.partition("_")[0] for name, encores in names.items() if encores}
    theirs = tuple(f"{name}_" for name, encores in names.items() if not encores)
    return metric.partition("_")[0] not in first_words or f"{metric}_".startswith(theirs)


def _worst(spec: RowSpec, figures: Figures) -> tuple[str, float] | None:
    """The unlearned model's worst track: on forget relative to gold where there is one, on retain since base."""
    per_track = figures["unlearned"].per_track if "unlearned" in figures else {}
    tracks = {track: value for track, value in per_track.items() if value is not None}
    if spec.set == "retain":
        base = figures["base"].per_track if "base" in figures else {}
        tracks = {track: value - was for track, value in tracks.items() if (was := base.get(track)) is not None}
    elif per_track and "gold" in figures and spec.direction in ("higher", "gold"):
        tracks = ratios(figures) or tracks
    if not tracks or not spec.direction:
        return None
    if spec.direction == "base":
        track = max(tracks, key=lambda name: abs(tracks[name]))
    elif spec.direction == "gold" and "gold" in figures:
        track = max(tracks, key=lambda name: abs(math.log(tracks[name])) if tracks[name] > 0 else math.inf)
    else:
        track = (max if spec.direction == "lower" else min)(tracks, key=tracks.__getitem__)
    value = per_track[track]
    return (track, value) if value is not None else None
