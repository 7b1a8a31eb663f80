"""`encore attribute`: rank tracks by their influence on a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encore.cli import console
from encore.cli.config import Device, Family, Json, Offline, Revision
from encore.text import counted


def attribute(
    clip: Annotated[Path, typer.Argument(help="Audio file, such as `encore generate` writes.")],
    catalog: Annotated[
        Path | None, typer.Option(help="Catalogue of what the model was trained on; default: the embedded model's.")
    ] = None,
    model: Annotated[str, typer.Option(help="`tiny`, a run folder, a model folder, or a hub name.")] = "tiny",
    backend: Family = None,
    caption: Annotated[
        str | None, typer.Option(help="Caption of the clip; default: from its side-car file or tags, or none.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of tracks to show.")] = 5,
    root: Annotated[
        list[Path] | None, typer.Option(help="Further folder that the catalogue's files may be in; repeat for more.")
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out tracks that can't be read.")
    ] = False,
    revision: Revision = None,
    offline: Offline = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Rank a catalogue's tracks by influence on a clip.

    A score is a cosine of gradients. Only the order of scores means something, no level of them proves anything: on the
    embedded model the track that a clip reproduces has .08 in the median, and the highest other track .05.
    """
    from encore import attribution
    from encore.cli.progress import reporting
    from encore.store.environment import keep_freed_memory
    from encore.store.model_name import backend_name

    keep_freed_memory()
    with reporting() as reporter:
        result = attribution.attribute(
            clip, model=model, catalog=catalog, caption=caption, backend=backend_name(model, backend),
            revision=revision, offline=offline, roots=root or (), skip_unreadable=skip_unreadable, device=device,
            reporter=reporter,
        )  # fmt: skip
    shown = result.tracks[:top]
    if json:
        tracks = [{"id": track.id, "title": track.title, "score": track.score} for track in shown]
        query = {"clip": str(clip), "model": model, "caption": result.caption, "caption_source": result.caption_source}
        compared = {"compared": len(result.tracks), "skipped": result.skipped, "tracks": tracks}
        console.data_json({"schema": 1, **query, **compared})
        return
    if result.skipped:
        console.note(
            f"left out {counted(len(result.skipped), 'track')} that can't be used: {'; '.join(result.skipped)}"
        )
    if result.caption is None:
        console.note("the clip has no caption and is compared without one; --caption TEXT gives one")
    else:
        console.note(f"caption ({result.caption_source}): {result.caption}")
    console.table(
        ["rank", "track", "title", "score"],
        [(rank, track.id, track.title, f"{track.score:.4f}") for rank, track in enumerate(shown, 1)],
        right=["rank", "score"],
    )
    console.note(
        f"compared with {counted(len(result.tracks), 'track')}; compare scores only with one another, see --help"
    )
