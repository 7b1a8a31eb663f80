"""`encore methods|backends|metrics|embedders`: what the plugins offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encore.api import MetricSpec, RowSpec
from encore.cli import console

if TYPE_CHECKING:
    from encore.plugins import Entry, Registry

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str | None, typer.Argument(help="Show this one only, in full.")]


_BEST = {"": "", "lower": "low", "higher": "high", "gold": "as gold", "base": "as base"}


def methods(name: Name = None, json: Json = False) -> None:
    """List the unlearning methods; with NAME, its options."""
    _list("methods", name, json)


def backends(name: Name = None, json: Json = False) -> None:
    """List the model families that can be loaded."""
    _list("backends", name, json)


def metrics(name: Name = None, json: Json = False) -> None:
    """List the metrics of `encore eval`; with NAME, what its rows mean and what they must reach."""
    _list("metrics", name, json)


def embedders(name: Name = None, json: Json = False) -> None:
    """List the audio embedders of the metrics."""
    _list("embedders", name, json)


def _list(plural: str, name: str | None, json: bool) -> None:
    from encore import plugins

    registry = plugins.registries()[plural]
    if name is not None:
        _show(registry, name, json)
        return
    described = [_describe(registry, entry) for entry in registry]
    if json:
        console.data_json({"schema": 1, plural: described})
        return
    console.table(
        ["name", "summary", "needs", "from", "available"],
        [[row["name"], row["summary"], ", ".join(_needs(row)), _source(row), row["why"] or "yes"] for row in described],
    )


def _show(registry: Registry[Any, Any], name: str, json: bool) -> None:
    """One entry: a metric with its rows, a method with its options, which imports it (and torch with it)."""
    entry = registry.get(name)
    row = _describe(registry, entry)
    options = []
    rows: Sequence[RowSpec] = getattr(entry.spec, "rows", ())
    if registry.kind == "metric":
        row["rows"] = [asdict(spec) for spec in rows]
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
        console.table(
            ["row", "set", "meaning", "best", "target"],
            [[spec.name, spec.set, spec.label, _BEST[spec.direction], spec.target] for spec in rows],
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
