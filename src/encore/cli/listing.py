"""`encore methods|backends|metrics|embedders`: what the plugins offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encore.api import MetricSpec, RowSpec
from encore.cli import console

if TYPE_CHECKING:
    from encore.plugins import Entry, Registry
    from encore.store.meta_json import RowTrust

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str | None, typer.Argument(help="Show this one only, in full.")]


_BEST = {"": "", "lower": "low", "higher": "high", "gold": "as gold", "base": "as base"}


def methods(name: Name = None, json: Json = False) -> None:
    """List the unlearning methods; with NAME, its options."""
    _list("methods", name, json)


def backends(name: Name = None, json: Json = False) -> None:
    """List the model families that can be loaded."""
    _list("backends", name, json)


def metrics(
    name: Name = None,
    bench: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also what `encore bench --meta` found of them in this bench.")
    ] = None,
    json: Json = False,
) -> None:
    """List the metrics of `encore eval`; with NAME, what its rows mean and what they must reach."""
    _list("metrics", name, json, _trust(bench) if bench is not None else None)


def embedders(name: Name = None, json: Json = False) -> None:
    """List the audio embedders of the metrics."""
    _list("embedders", name, json)


def _trust(bench: Path) -> dict[tuple[str, str], RowTrust]:
    """What was found of the rows, by metric and set."""
    from encore.errors import InputError
    from encore.store.meta_json import read_trust

    if not (bench / "bench.json").exists():
        why = "there is no bench in" if bench.is_dir() else "there is no folder"
        raise InputError(f"{why} {bench}", "name the --out of `encore bench`")
    trials = [path.parent for path in bench.glob("*/seed-*/request.json") if (path.parent / "metrics.json").exists()]
    rows, note = read_trust(bench, trials)
    if not rows:
        raise InputError(
            note or f"the metrics of {bench} were not tried", f"try them: encore bench --meta --out {bench}"
        )
    return {(row.metric, row.set): row for row in rows}


def _found(spec: RowSpec, trust: Mapping[tuple[str, str], RowTrust]) -> list[RowTrust]:
    """What was found of the rows that a spec declares: several, where its name has a `*` for an embedder's."""
    from encore.results.targets import spec_of

    return [found for (metric, clips), found in trust.items() if spec_of(metric, clips) == spec]


def _verdicts(found: Sequence[RowTrust]) -> str:
    """One row's verdict; of several, each after its label."""
    texts = [row.text if len(found) == 1 else f"{row.label}: {row.text}" for row in found]
    return "; ".join(texts) or "not tried"


def _list(plural: str, name: str | None, json: bool, trust: Mapping[tuple[str, str], RowTrust] | None = None) -> None:
    from encore import plugins

    registry = plugins.registries()[plural]
    if name is not None:
        _show(registry, name, json, trust)
        return
    described = [_describe(registry, entry) for entry in registry]
    if trust is not None:
        for row, entry in zip(described, registry, strict=True):
            found = [item for spec in entry.spec.rows for item in _found(spec, trust)]
            row["trust"] = [asdict(item) for item in found]
            row["trusted"] = _verdicts(found)
    if json:
        console.data_json({"schema": 1, plural: described})
        return
    more = ["trusted"] if trust is not None else []
    console.table(
        ["name", "summary", "needs", "from", "available", *more],
        [
            [row["name"], row["summary"], ", ".join(_needs(row)), _source(row), row["why"] or "yes"]
            + [row[title] for title in more]
            for row in described
        ],
    )


def _show(
    registry: Registry[Any, Any], name: str, json: bool, trust: Mapping[tuple[str, str], RowTrust] | None = None
) -> None:
    """One entry: a metric with its rows, a method with its options, which imports it (and torch with it)."""
    entry = registry.get(name)
    row = _describe(registry, entry)
    options = []
    rows: Sequence[RowSpec] = getattr(entry.spec, "rows", ())
    if registry.kind == "metric":
        row["rows"] = [asdict(spec) for spec in rows]
        for spec, described in zip(rows, row["rows"], strict=True):
            if trust is not None:
                described["trust"] = [asdict(found) for found in _found(spec, trust)]
    if registry.kind == "method":
        from encore.settings import describe_options

        options = describe_options(registry.resolve(name).Options)
        row["options"] = [option._asdict() for option in options]
    if json:
        console.data_json({"schema": 1, registry.kind: row})
        return
    console.data(f"{row['name']}: {row['summary']}")
    console.data(f"from {_source(row)} ({row['target']})")
    if _needs(row):
        console.data(f"needs {', '.join(_needs(row))}")
    if row["requires"]:
        console.data(f"requires {', '.join(row['requires'])}")
    if row["why"]:
        console.data(f"not available: {row['why']}")
    if rows:
        console.data()
        more = ["trusted"] if trust is not None else []
        console.table(
            ["row", "set", "meaning", "best", "target", *more],
            [
                [spec.name, spec.set, spec.label, _BEST[spec.direction], spec.target]
                + [_verdicts(_found(spec, trust or {})) for _ in more]
                for spec in rows
            ],
        )
    if options:
        console.data()
        console.table(
            ["option", "type", "default", "allowed", "description"],
            [[o.name, o.type, "(required)" if o.required else o.default, o.allowed, o.description] for o in options],
        )


def _describe(registry: Registry[Any, Any], entry: Entry[Any]) -> dict[str, Any]:
    spec, why = entry.spec, None
    missing = entry.missing()
    if sum(registered.spec.name == spec.name for registered in registry) > 1:
        why = "another plugin has the same name"
    elif missing:
        why = f"needs {' and '.join(missing)}" + (f": {spec.install}" if spec.install else "")
    return {
        "name": spec.name,
        "summary": spec.summary,
        **({"full": spec.full} if isinstance(spec, MetricSpec) else {}),
        "needs": sorted(spec.needs),
        "requires": list(spec.requires),
        "target": spec.target,
        "plugin": entry.source.name,
        "distribution": entry.source.distribution,
        "version": entry.source.version,
        "available": why is None,
        "why": why,
    }


def _needs(row: dict[str, Any]) -> list[str]:
    """What must be there, and the flag without which a metric is not measured."""
    return [*(["--full"] if row.get("full") else []), *row["needs"]]


def _source(row: dict[str, Any]) -> str:
    return f"{row['distribution']} {row['version']}"
