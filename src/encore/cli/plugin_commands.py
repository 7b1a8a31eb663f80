"""`encore plugins`: what is installed, from where, what failed and why; `new` writes one, `check` tries one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from encore.cli import console
from encore.cli.check import check
from encore.cli.help import Command, dressed

app = typer.Typer(
    rich_markup_mode=None, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


app.command("check", cls=Command)(dressed(check))


def listing(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the plugins; `new` creates one, `check` tests one."""
    if context.invoked_subcommand is not None:
        return
    from encore import plugins

    problems = plugins.plugin_errors()
    manager = plugins.manager()
    rows: list[dict[str, Any]] = [
        {
            "name": point.name,
            "distribution": point.distribution,
            "version": point.version,
            "module": point.value,
            "hooks": manager.hooks(point),
            "provides": {
                plural: [entry.spec.name for entry in registry if entry.source == point]
                for plural, registry in plugins.registries().items()
            },
            "problems": [{"where": p.where, "message": p.message} for p in problems if p.source == point],
        }
        for point in manager.points
    ]
    if json:
        console.data_json({"schema": 1, "plugins": rows})
        return
    console.table(
        ["plugin", "distribution", "version", "offers", "problems"],
        [[r["name"], r["distribution"], r["version"], _offers(r), len(r["problems"]) or "none"] for r in rows],
    )
    for problem in problems:
        console.data(f"problem: {problem}")
        if problem.error is not None and console.debugging():
            console.trace(problem.error)


def _offers(row: dict[str, Any]) -> str:
    provided = row["provides"].items()
    offered = [f"{len(names)} {plural if len(names) > 1 else plural[:-1]}" for plural, names in provided if names]
    if "encore_register_commands" in row["hooks"]:
        offered.append("commands")
    return ", ".join(offered) or "nothing"


def new(
    name: Annotated[str, typer.Argument(help="Lower case, with dashes; the package becomes encore-NAME.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write [default: encore-NAME].")] = None,
) -> None:
    """Write a separately installable plugin: one method, one metric, tests, README."""
    from encore.cli.scaffold import write_plugin

    folder = write_plugin(name, out)
    console.data(folder)
    console.note(f"next: pip install -e {folder}, then encore plugins")


app.callback(invoke_without_command=True)(dressed(listing))
app.command("new", cls=Command)(dressed(new))
