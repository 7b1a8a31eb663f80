"""What this plugin offers. Encore reads this on every start: keep torch and audiocraft out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from encore.api import BackendSpec, hookimpl

if TYPE_CHECKING:
    import typer

INSTALL = "pip install --no-deps audiocraft==1.3.0"  # its own pins can't be met; what it needs came with this plugin


@hookimpl
def encore_register_backends() -> list[BackendSpec]:
    return [
        BackendSpec(
            name="audiocraft",
            summary="MusicGen through Meta's audiocraft",
            target="encore_audiocraft.backend:AudiocraftBackend",
            requires=("audiocraft",),
            install=INSTALL,
        )
    ]


@hookimpl
def encore_register_commands(app: typer.Typer) -> None:
    from encore_audiocraft.command import convert

    app.command("convert", short_help="Write a MusicGen in another library's format.")(convert)
