"""The files of a leaderboard: Markdown, CSV, JSON and SVG."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from encore import __version__, stats
from encore.compare.leaderboard import FORGET, RETAIN, Leaderboard, Line
from encore.compare.matrix import ROWS, Figure, MatrixLine
from encore.compare.pareto import pareto_svg
from encore.compare.plan import BOARD
from encore.compare.sequential import RequestLine
from encore.report.card import text
from encore.report.svg import can_draw
from encore.store.meta_json import RowTrust
from encore.store.run_folder import write_bytes, write_json
from encore.text import csv_cell

SCHEMA = 2
MARKS = re.compile(r"([\\|`\[])")  # would end a cell or begin a link
COUNTS = (FORGET, RETAIN, "verbatim, forget", "verbatim, retain", "seconds")


def write_leaderboard(
    out: Path, board: Leaderboard, requests: Sequence[RequestLine], matrix: Sequence[MatrixLine] = ()
) -> list[Path]:
    """Write `leaderboard.json`, `.md`, `.csv`, with lists `matrix.csv`, and with matplotlib `pareto.svg`.

    Returns:
        Paths of the written files.
    """
    content: dict[str, Any] = {
        "schema": SCHEMA, "encore": __version__, "tracks": dict(board.tracks),
        "references": [line.as_dict() for line in board.references],
        "methods": [line.as_dict() for line in board.lines],
        "requests": [line.as_dict() for line in requests],
        "matrix": [line.as_dict() for line in matrix], "failed": dict(board.failed),
        "trust": [asdict(row) for row in board.trust], "trust_note": board.trust_note,
        "unmeasured": dict(board.unmeasured),
    }  # fmt: skip
    page, sheet, data, drawing, matrix_sheet = (out / name for name in BOARD)
    write_json(data, content)
    write_bytes(page, markdown(board, requests, matrix).encode())
    write_bytes(sheet, spreadsheet(board).encode())
    written = [page, sheet, data]
    if matrix:
        write_bytes(matrix_sheet, matrix_spreadsheet(matrix).encode())
        written.append(matrix_sheet)
    if (figure := pareto_svg(board) if can_draw() else None) is not None:
        write_bytes(drawing, figure.encode())
        written.append(drawing)
    return written


def label(line: Line) -> str:
    """The name of a line in tables."""
    return line.label if line.requests == 1 else f"{line.label}, {line.requests} requests"


def header(board: Leaderboard) -> list[str]:
    """The titles of the table: method, whether it forgets, values, p-values."""
    of = {"verbatim, forget": board.tracks.get("forget"), "verbatim, retain": board.tracks.get("retain")}
    titles = [f"{title} /{of[title]}" if of.get(title) else title for title in board.titles]
    return ["method", "forgets", *titles, *(f"p, {title}" for title in board.tested)]


def cells(board: Leaderboard, line: Line) -> list[str]:
    """One line of the table: medians over seeds."""
    forgets = {True: "yes", False: "NO", None: "–"}[line.forgets]
    return [label(line), forgets, *(_shown(line, title) for title in board.titles), *_ps(board, line)]


def _shown(line: Line, title: str) -> str:
    value = line.median(title)
    if value is None:
        return "–"
    if title in (FORGET, RETAIN) and not line.judged.get(title):  # none was judged
        return "–"
    if title in COUNTS:
        count = f"{value:.0f}" if value == round(value) or title == "seconds" else f"{value:.1f}"
        return f"{count}/{line.judged.get(title, 0)}" if title in (FORGET, RETAIN) else count
    return f"{value:.3f}" if abs(value) < 0.1 else f"{value:.2f}"


def _ps(board: Leaderboard, line: Line) -> list[str]:
    return [f"{line.p[title]:.2g}" if title in line.p else "–" for title in board.tested]


def markdown(board: Leaderboard, requests: Sequence[RequestLine] = (), matrix: Sequence[MatrixLine] = ()) -> str:
    """The leaderboard as a Markdown page."""
    lines = ["# Leaderboard"]
    if board.lines or not matrix:
        lines += ["", _explained(board), ""]
        lines += _table(header(board), [cells(board, line) for line in (*board.references, *board.lines)])
    if matrix:
        lines += _matrix(matrix)
    if requests:
        lines += ["", "## Sequential requests", ""]
        lines += ["The tracks of each request, right after it and after the last request.", ""]
        titles = ["method", "requests", "request", "tracks", "NLL after it", "NLL at the end", "verbatim after it"]
        lines += _table([*titles, "verbatim at the end"], [
            [r.method, str(r.requests), str(r.number), str(r.tracks), f"{r.nll_after:.2f}", f"{r.nll_end:.2f}",
             *("–" if count is None else f"{count:.0f}" for count in (r.verbatim_after, r.verbatim_end))]
            for r in requests
        ])  # fmt: skip
    if board.trust:
        lines += ["", "## Do the metrics tell the truth?", "", _TRUST_EXPLAINED, "", *_table(*trust_table(board.trust))]
    if board.unmeasured:
        lines += ["", "## Without figures", ""]
        lines += [f"- `{name}`: {text(' '.join(why.split()))}" for name, why in board.unmeasured.items()]
    if board.failed:
        lines += ["", "## Not in the table", ""]
        lines += [f"- `{name}`: {text(' '.join(why.split()))}" for name, why in board.failed.items()]
    return "\n".join(lines) + "\n"


def _explained(board: Leaderboard) -> str:
    seeds = sorted({len(line.seeds) for line in board.lines})
    many = " to ".join(dict.fromkeys(str(n) for n in (seeds[0], seeds[-1]))) if seeds else "no"
    text = (
        f"Medians over {many} seed{'' if many == '1' else 's'} per method (low, high: see leaderboard.json). Order: "
        "methods that forget come first (with every seed, they reproduce no more forget tracks than gold, and their KL "
        "to gold is at most half of base's), by share of all targets met, then by KL to gold; the others follow by "
        "share of forget targets met, then by KL to gold. base and gold are judged by the same targets."
    )
    if ignored := [row.label for row in board.trust if row.trusted == "no"]:
        text += (
            " Not counted, as `encore bench --meta` found that they don't tell models that hold the tracks from models "
            f"that don't: {'; '.join(ignored)}."
        )
    if board.trust_note:
        text += f" {board.trust_note[0].upper()}{board.trust_note[1:]}."
    if board.tested:
        least = ", ".join(f"{title} {stats.least_p(n):.2g} ({n} tracks)" for title, n in board.tested.items())
        text += (
            " p: sign-flip test of the per-track differences from the first method, corrected for all pairs of "
            f"methods (Westfall and Young's max-T). Lowest possible p: {least}."
        )
    return text


_TRUST_EXPLAINED = (
    "AUC: how well the row tells models that hold the tracks from models that don't, both known by their training, "
    "with a 95 % interval; trusted where that is above 0.5. All are forms of base and the two golds: the interval "
    "covers no golds trained otherwise. relearning, quantisation: 1 where no trial that the row says has forgotten "
    "shows more after the attack (relearning: than gold does). order: the least Kendall τ between the trials before "
    "and after an attack."
)


def trust_table(trust: Sequence[RowTrust]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of what `encore bench --meta` found."""
    titles = ["row", "trusted", "AUC", "models", "trials", "relearning", "quantisation", "robustness", "order"]
    return titles, [
        [
            row.label, row.trusted, "–" if row.auc is None else f"{row.auc:.2f} ({row.low:.2f} to {row.high:.2f})",
            f"{row.holds} and {row.lacks}", str(row.trials), *map(_two_digits, (row.relearning, row.quantisation)),
            _two_digits(row.robustness), _two_digits(min(row.order.values()) if row.order else None),
        ]
        for row in trust
    ]  # fmt: skip


def _two_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def matrix_table(matrix: Sequence[MatrixLine]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of one method: one row per value, one column per list."""
    rows = [[title, *(judged(line.median(title)) for line in matrix)] for title in ROWS]
    return ["row", *(line.label for line in matrix)], [row for row in rows if any(text != "–" for text in row[1:])]


def judged(figure: Figure | None) -> str:
    """A value with its bounds and a mark: ✓ met, ✗ missed."""
    if figure is None:
        return "–"

    def text(value: float) -> str:
        return f"{value:.0f}" if value == round(value) else f"{value:.3f}" if abs(value) < 0.1 else f"{value:.2f}"

    bounds = {
        (True, True): "", (False, True): f" (≥ {text(figure.low or 0.0)})",
        (True, False): f" (≤ {text(figure.high or 0.0)})",
        (False, False): f" ({text(figure.low or 0.0)} to {text(figure.high or 0.0)})",
    }  # fmt: skip
    mark = {True: " ✓", False: " ✗", None: ""}[figure.met]
    return text(figure.value) + bounds[figure.low is None, figure.high is None] + mark


def _matrix(matrix: Sequence[MatrixLine]) -> list[str]:
    lines = ["", "## Lists of tracks", ""]
    lines += [
        "Medians over seeds, with bounds in brackets: ✓ met, ✗ missed, no mark if not judged. noise: KL(gold ‖ gold2). "
        "Memorised: base's NLL is below half of its held-out NLL. base's noise: its generations with another seed."
    ]
    for method in dict.fromkeys(line.method for line in matrix):
        group = [line for line in matrix if line.method == method]
        seeds = ", ".join(f"{line.label}: {len(line.seeds)}" for line in group)
        lines += ["", f"### {text(method)}", "", *_table(*matrix_table(group)), "", f"Seeds: {seeds}."]
    notes = dict.fromkeys(f"- {line.label}: {line.note}" for line in matrix if line.note)
    return [*lines, *(["", *notes] if notes else [])]


def matrix_spreadsheet(matrix: Sequence[MatrixLine]) -> str:
    """The matrix as CSV, one row per list, method and value."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(
        ["list", "tracks", "method", "requests", "seeds", "row", "median", "min", "max", "at least", "at most", "met"]
    )
    for line in matrix:
        for row in line.as_dict()["rows"]:
            values, met = row["of_seeds"], {True: "yes", False: "no", None: None}[row["met"]]
            of = [csv_cell(line.list), line.tracks, csv_cell(line.method), line.requests, len(line.seeds)]
            spread = [row["median"], min(values), max(values)]
            table.writerow([*of, row["row"], *spread, row["low"], row["high"], met])
    return file.getvalue()


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(MARKS.sub(r"\\\1", html.escape(cell, quote=False)) for cell in row) + " |"

    return [line(titles), "|" + " --- |" * len(titles), *(line(row) for row in rows)]


def spreadsheet(board: Leaderboard) -> str:
    """The leaderboard as CSV: one row per method, with columns for median, low and high of each value."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    spread = [f"{title}: {part}" for title in board.titles for part in ("median", "low", "high")]
    judged = [f"{title} judged" for title in (FORGET, RETAIN)]
    titles = ["method", "requests", "seeds", "forgets", *judged, *spread, *(f"p, {title}" for title in board.tested)]
    table.writerow([csv_cell(title) for title in titles])
    for line in (*board.references, *board.lines):
        forgets = {True: "yes", False: "no", None: None}[line.forgets]
        row: list[object] = [csv_cell(line.label), line.requests, len(line.seeds), forgets]
        row += [line.judged.get(title, 0) for title in (FORGET, RETAIN)]
        for title in board.titles:
            values = line.figures.get(title)
            row += [line.median(title), min(values), max(values)] if values else [None, None, None]
        table.writerow([*row, *(line.p.get(title) for title in board.tested)])
    return file.getvalue()
