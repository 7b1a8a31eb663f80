"""`encore runs`, `encore compare`, `encore open`: runs that are there already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encore.cli import console
from encore.errors import InputError, UsageError

if TYPE_CHECKING:
    from encore.api import Result
    from encore.compare.runs import ComparedRow, Difference

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that holds runs, at any depth.")] = Path("runs"),
    json: Json = False,
) -> None:
    """List the runs in a folder and their state."""
    from encore.store.cache_entries import size_text
    from encore.store.overview import find_runs

    run_lines = find_runs(folder)
    if json:
        console.data_json({"schema": 1, "folder": str(folder), "runs": [line.as_dict() for line in run_lines]})
        return
    if not run_lines:
        console.note(f"there is no run in {folder}")
        return
    console.table(
        ["run", "date", "method", "model", "tracks", "state", "forget targets", "retain targets", "size"],
        [
            (
                line.name, line.date[:16].replace("T", " "), line.method, Path(line.model).name, line.tracks or "",
                line.state, line.forget, line.retain, size_text(line.size),
            )
            for line in run_lines
        ],
        right=["tracks", "forget targets", "retain targets", "size"],
    )  # fmt: skip
    for line in run_lines:
        if line.why:
            console.warn(f"{line.name}: {line.why}")


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders that `encore eval` has measured; all are compared with the first.")
    ],
    json: Json = False,
) -> None:
    """Show figures of several runs side by side, and which of them differ by more than chance."""
    from encore.compare.runs import compare as side_by_side

    if len(runs) < 2:
        raise UsageError("compare needs at least two runs", "encore compare runs/a runs/b")
    comparison = side_by_side(runs)
    for doubt in comparison.doubts:
        console.warn(doubt)
    names = [str(run) for run in runs]
    if json:
        rows = [row.as_dict() for row in comparison.rows]
        console.data_json({"schema": 1, "runs": names, "doubts": list(comparison.doubts), "rows": rows})
        return
    others = [f"{name} - {names[0]}" for name in names[1:]]
    console.table(["figure", *names, *others], [_cells(row) for row in comparison.rows], right=names)
    console.note(
        "differences between the unlearned models, with 95 % intervals over the tracks that both measured; about one "
        "figure in twenty is marked as different by chance alone"
    )


def _cells(row: ComparedRow) -> list[str]:
    return [row.label, *map(_figure, row.figures), *map(_difference, row.differences)]


def _figure(row: Result | None) -> str:
    from encore.report.tables import of_tracks

    if row is None or row.value is None:
        return ""
    return f"{round(row.value * row.n)}/{row.n}" if of_tracks(row) else f"{row.value:.3g}"


def _difference(difference: Difference) -> str:
    from encore.compare.runs import SAME

    if difference.value is None:
        return ""
    if difference.verdict == SAME:
        return SAME
    interval = f" ({difference.low:+.2g} to {difference.high:+.2g})" if difference.low is not None else ""
    return f"{difference.value:+.3g}{interval} {difference.verdict}".rstrip()


def open_report(
    run: Annotated[Path, typer.Argument(help="Folder of a run that `encore eval` has measured.")],
    only_print: Annotated[bool, typer.Option("--print", help="Print the report's path and open nothing.")] = False,
) -> None:
    """Open a run's report in the browser."""
    import webbrowser

    from encore.report.run_files import REPORT
    from encore.store.run_folder import complete_run

    page = run / REPORT
    if not page.is_file():
        hint = "`encore runs` lists the runs that there are"
        if (run / "request.json").exists():
            complete_run(run)
            hint = f"make it: encore eval {run}"
        raise InputError(f"there is no report in {run}", hint)
    if not only_print and _has_display() and webbrowser.open(page.resolve().as_uri()):
        console.note(f"opened {page}")
        return
    if not only_print:
        console.note("there is no browser to open it with; this is the report:")
    console.data(page)


def _has_display() -> bool:
    """Whether a browser would have a screen; without one, text browsers would take over the terminal."""
    import os
    import sys

    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
