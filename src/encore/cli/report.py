"""`encore report`: write a run's report again from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encore.cli import console


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a complete run that `encore eval` has measured.")],
    embed_audio: Annotated[
        bool,
        typer.Option("--embed-audio", help="Put the forgotten tracks themselves into the page, to compare by ear."),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="The file; default: report.html in the run's folder.")] = None,
) -> None:
    """Write a run's report again from its files, and the model's card, without measuring again."""
    from encore.report.card import write_card
    from encore.report.page import write_report
    from encore.report.run_files import read_run
    from encore.report.svg import can_draw

    target = write_report(run, out=out, originals=embed_audio)
    files = read_run(run)
    write_card(run, files.run, files.results)
    if not can_draw():
        console.note('the figures are tables; to draw them: pip install "encore-music[report]"')
    console.data(target)
