"""The hooks of the entry-point group `encore`. All are optional."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import typer

    from encore.api import BackendSpec, EmbedderSpec, MethodSpec, MetricSpec

hookspec = pluggy.HookspecMarker("encore")


@hookspec
def encore_register_methods() -> Iterable[MethodSpec]:
    """Unlearning methods of this plugin."""
    raise NotImplementedError


@hookspec
def encore_register_backends() -> Iterable[BackendSpec]:
    """Model families that this plugin can load, train, generate from and save."""
    raise NotImplementedError


@hookspec
def encore_register_metrics() -> Iterable[MetricSpec]:
    """Metrics this plugin adds to `encore eval`."""
    raise NotImplementedError


@hookspec
def encore_register_embedders() -> Iterable[EmbedderSpec]:
    """Audio embedders of this plugin, for metrics."""
    raise NotImplementedError


@hookspec
def encore_register_commands(app: typer.Typer) -> None:
    """Add commands to the `encore` application. Import heavy packages inside the command's body."""
    raise NotImplementedError
