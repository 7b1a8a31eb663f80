"""`encore cache`: what is kept on disk to save time, and how it is made smaller."""

from __future__ import annotations

from typing import Annotated

import typer

from encore.cli import console
from encore.errors import UsageError


def cache(
    clear: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Remove all entries of this kind."),
    ] = None,
    older: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="Remove only what was not used for so many days.")
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Delete the least recently used entries until the rest fits: 5GB, 500MB, or bytes."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the cache's contents, or remove some. Removed entries are computed again when needed."""
    from encore.settings import cache_folder
    from encore.store.cache_entries import KINDS, chosen, entries, read_size, remove, size_text

    if clear is not None and max_size is not None:
        raise UsageError("--clear and --max-size exclude each other", "give one of the two")
    limit = read_size(max_size) if max_size is not None else None
    folder = cache_folder()
    listed = entries(folder)
    removed = chosen(listed, kind=clear, older=older, max_size=limit)
    remove(removed)
    gone = {entry.path for entry in removed}
    left = [entry for entry in listed if entry.path not in gone]
    kinds = {
        kind: {
            "entries": sum(entry.kind == kind for entry in left),
            "bytes": sum(entry.size for entry in left if entry.kind == kind),
        }
        for kind in KINDS
    }
    total = sum(entry.size for entry in left)
    freed = sum(entry.size for entry in removed)
    if json:
        took = {"entries": len(removed), "bytes": freed}
        console.data_json({"schema": 1, "folder": str(folder), "bytes": total, "kinds": kinds, "removed": took})
        return
    console.table(
        ["kind", "entries", "size", "what"],
        [(kind, row["entries"], size_text(row["bytes"]), KINDS[kind]) for kind, row in kinds.items()],
        right=["entries", "size"],
    )
    if clear is not None or older is not None or max_size is not None:
        console.note(f"removed {len(removed)} entries, {size_text(freed)}")
    console.note(f"{size_text(total)} in {folder}; any of it may be removed at any time")
