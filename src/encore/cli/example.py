"""`encore config`: a config file to begin with, and the environment variables there are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from encore.cli import console
from encore.errors import UsageError


def config(
    method: Annotated[str, typer.Option(help="Method whose options the file has.")] = "encore",
    env: Annotated[bool, typer.Option("--env", help="List the environment variables instead.")] = False,
    json: Annotated[bool, typer.Option("--json", help="With --env: print JSON.")] = False,
) -> None:
    """Print a config file with all settings for `encore forget --config FILE`; all are commented out."""
    if env:
        _environment(json)
        return
    if json:
        raise UsageError("--json goes with --env: a config file is TOML", "leave it out")
    from encore import plugins
    from encore.settings import describe_options

    options = describe_options(plugins.methods().resolve(method).Options)
    for line in (*_flags(method), *_options(method, options)):
        console.data(line)


def _environment(json: bool) -> None:
    from encore.settings import ENVIRONMENT

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "set": {key: text for key, text in os.environ.items() if re.fullmatch(_pattern(name), key)},
            "what": what,
        }
        for name, what in ENVIRONMENT.items()
    ]
    if json:
        console.data_json({"schema": 1, "variables": rows})
        return
    console.table(
        ["variable", "now", "what it does"],
        [(row["name"], ", ".join(map(str, row["set"].values())), row["what"]) for row in rows],
    )


def _pattern(name: str) -> str:
    """Of a name that ends in _, every variable that begins with it."""
    return f"{name}.+" if name.endswith("_") else name


def _flags(method: str) -> Iterator[str]:
    """The flags of `encore forget`, but those that are no setting."""
    from encore.cli.app import build

    command: Any = typer.main.get_command(build({"forget"}))
    yield "# Settings of `encore forget --config FILE`. Remove the # from a line to change that setting."
    yield "# The command line overrides the environment, which overrides this file."
    for parameter in command.commands["forget"].params:
        if parameter.name not in ("config", "option", "help", "quiet", "verbose", "json", "dry_run", "resume"):
            default = method if parameter.name == "method" else parameter.default
            yield ""
            yield f"# {parameter.help}"
            yield _setting(str(parameter.name), default, parameter.multiple)


def _options(method: str, options: Any) -> Iterator[str]:
    yield ""
    yield f"[options]  # of the method {method}"
    for option in options:
        yield ""
        yield f"# {option.description}" + (f" ({option.allowed})" if option.allowed else "")
        yield _setting(option.name, option.default, False)


def _setting(name: str, default: Any, several: bool) -> str:
    """A line of TOML, commented out; of what has no default, without a value."""
    import json

    if default is None or callable(default):
        return f"# {name} = " + ("[]" if several else "")
    return f"# {name} = {json.dumps(default, ensure_ascii=False)}"
