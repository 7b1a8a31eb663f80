"""`encore convert`: the signature; the work is in `encore_audiocraft.convert`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Library(StrEnum):
    """Whose format to write."""

    transformers = "transformers"
    audiocraft = "audiocraft"


def convert(
    model: Annotated[str, typer.Argument(metavar="IN", help="`tiny`, a run folder, a model folder, or a hub name.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.")],
    to: Annotated[Library, typer.Option(help="Whose format to write.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use downloaded files only; no network.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a MusicGen in another library's format, every weight bit for bit: its codec and text encoder too."""
    from encore.cli import console
    from encore.cli.progress import reporting
    from encore_audiocraft.refusals import source_of

    source_of(model, out, to.value)
    from encore_audiocraft.convert import convert

    with reporting() as reporter:
        reporter.progress("convert", 0, 1)
        written = convert(model, out, to.value, revision=revision, offline=offline)
    if json:
        console.data_json({"schema": 1, "model": model, "out": str(out), "to": to.value, "files": written})
    else:
        console.table(["file", "bytes"], list(written.items()), right=["bytes"])
        backend = "audiocraft" if to is Library.audiocraft else "musicgen"
        console.note(f"next: encore generate --backend {backend} --model {out} …")
