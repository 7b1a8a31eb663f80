"""`encore encode`: the codes of a catalogue in shards, in place of its audio."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from encore.cli import console
from encore.cli.config import Device, Family, Json, Model, Offline, Revision
from encore.text import counted


def encode(
    catalog: Annotated[Path, typer.Option(help="Catalogue to encode: a file, or a folder that holds one.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the shards, new or empty; the same command continues or updates it.")
    ],
    model: Model = "tiny",
    backend: Family = None,
    revision: Revision = None,
    offline: Offline = False,
    root: Annotated[
        list[Path] | None, typer.Option(help="Further folder that the catalogue's files may be in; repeat for more.")
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out tracks that can't be read.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: one per core on a CPU, else one.")
    ] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Encode a catalogue into shards of codes, which stand in for its audio.

    `encore forget`, `train`, `eval`, `attribute` and `bench` take the folder as --catalog. They read no audio of it, so
    the files may be deleted: what was encoded can be forgotten and measured without them.
    """
    from encore.cli.progress import reporting
    from encore.pre_encoding import EncodeConfig, encode_catalog
    from encore.store.environment import keep_freed_memory
    from encore.store.model_name import backend_name

    keep_freed_memory()
    config = EncodeConfig(
        catalog, out, model, backend_name(model, backend), revision, offline, device, tuple(root or ()), workers,
        skip_unreadable,
    )  # fmt: skip
    with reporting() as reporter:
        result = encode_catalog(config, reporter)
    if json:
        console.data_json({"schema": 1, "out": str(out), **result})
        return
    for note in result["notes"]:
        console.note(note)
    skipped = f"; {result['skipped']:,} left out that can't be read" if result["skipped"] else ""
    console.note(
        f"{counted(result['tracks'], 'track')} in {counted(result['shards'], 'shard')}, {result['bytes'] / 1e6:,.0f} MB"
        f", of which {result['written']:,} written now{skipped}"
    )
    console.note(f"next: encore forget --tracks LIST --catalog {shlex.quote(str(out))} --model {shlex.quote(model)}")
