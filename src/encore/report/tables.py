"""The report's lists and tables: tests by outcome, targets by role, track by track, and every figure there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from encore.api import Result
from encore.metrics.memorization.verbatim import MATCH
from encore.report import verdict
from encore.report.figures import NAMES, Figure
from encore.report.formatting import number, percent, unit_text
from encore.report.run_files import RunFiles
from encore.report.track_chart import nll_shares, reproduces, worst_first
from encore.results.targets import SummaryRow, row_specs, spec_of
from encore.store.meta_json import RowTrust

COLUMNS = 6  # figures a table of tracks, so that it fits a page
SHORT = 200  # characters of a detail that are shown
YES_NO = {None: "–", True: "yes", False: "no"}


@dataclass(frozen=True)
class Cell:
    """A figure, and what is said below it."""

    text: str
    small: str = ""
    state: str = ""  # good, bad, or nothing


@dataclass(frozen=True)
class Table:
    """Rows of cells under headers; the first column names the row."""

    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""


@dataclass(frozen=True)
class Test:
    """One line of the table of targets as an entry of a list.

    Args:
        name: in plain words. figures: before, after and gold. target: what is required. met: None: not judged, and
            `why` says why. worst: the track that is farthest from where it should be.
    """

    name: str
    figures: str
    target: str
    met: bool | None
    why: str = ""
    worst: str = ""


def tests(files: RunFiles) -> list[Test]:
    """Every line that has a target: of forgetting before the others, and of verbatim reproduction before the rest."""
    titles = {
        str(entry["id"]): track_cell(entry).text for name in ("forget", "retain") for entry in files.request[name]
    }
    rows = []
    for line in sorted(files.table, key=lambda line: (line.set != "forget", "verbatim" not in line.metric)):
        if line.target:
            worst = titles.get(line.worst[0], line.worst[0]) if line.worst and line.met is False else ""
            why = _not_judged(line) if line.met is None else ""
            rows.append(Test(verdict.name(line), _in_words(line), line.target, line.met, why, worst))
    return rows


def _in_words(line: SummaryRow) -> str:
    """ "before 8 of 8 tracks, after 2 of 8, gold 0 of 8"."""
    known = {role: row for role, row in line.figures.items() if row.value is not None}
    counted = any(map(of_tracks, known.values()))
    shown = ["base", "unlearned", "gold" if "gold" in known else "gold2"]
    parts = [f"{NAMES[role]} {_figure(known[role]).text}" for role in shown if role in known]
    unit = unit_text(_unit(line))
    return ", ".join(parts) + (f" {unit}" if unit and (parts and (counted or "per" in unit)) else "")


def _not_judged(line: SummaryRow) -> str:
    """Why a line that has a target was not judged."""
    if line.fault:
        return line.fault
    row = line.figures.get(line.lacks)
    if line.lacks in line.no_golds:
        return f"“{NAMES[line.lacks]}” has memorised forget tracks itself, so that there is nothing to compare with"
    if row is not None and row.value is not None:
        return f"“{NAMES[line.lacks]}” shows nothing under this test either, so that it could not fail"
    if row is not None and row.why:
        return row.why
    return f"there is no figure of “{NAMES.get(line.lacks, line.lacks)}” to compare with"


def targets(files: RunFiles) -> Table:
    """The lines a decision rests on: one column a role."""
    lines = files.table
    roles = [role for role in (*NAMES, "none") if any(role in line.figures for line in lines)]
    heads = tuple(NAMES.get(role, "without a model") for role in roles)
    rows = []
    for line in lines:
        state = {True: "good", False: "bad", None: ""}[line.met]
        met = {True: "reached", False: "missed", None: ""}[line.met]
        figures = [_figure(line.figures.get(role)) for role in roles]
        trust = [_trust(files.trust.get((line.metric, line.set)))] if files.trust else []
        rows.append((Cell(line.label, unit_text(_unit(line))), Cell(met, line.target, state), *figures, *trust))
    return Table(("figure", "target", *heads, *(["trusted"] if files.trust else [])), tuple(rows))


def _trust(row: RowTrust | None) -> Cell:
    """Whether the row tells models that hold the tracks from models that don't."""
    if row is None:
        return Cell("–", "not tried")
    return Cell(row.trusted, row.text.removeprefix(row.trusted).lstrip(",: "), "bad" if row.trusted == "no" else "")


def tracks(files: RunFiles) -> Table:
    """The forget tracks, best remembered first: the one to look at is on top."""
    rows = {(row.metric, row.model): row.per_track for row in files.results if row.set == "forget"}
    gold, after, shares = rows.get(("nll", "gold"), {}), rows.get(("nll", "unlearned"), {}), nll_shares(files)
    columns: list[tuple[str, Mapping[str, float | None]]] = [
        (f"{files.loss} before", rows.get(("nll", "base"), {})),
        (f"{files.loss} after", after),
        (f"{files.loss} of gold", gold),
        ("after relearning", rows.get(("relearn", "unlearned"), {})),
    ]
    columns = [(head, figures) for head, figures in columns if figures]
    tests = [("verbatim from 1 s", "verbatim"), ("verbatim from description", "verbatim_caption")]
    tests = [(head, metric) for head, metric in tests if (metric, "unlearned") in rows]
    entries = {str(entry["id"]): entry for entry in files.request["forget"]}
    table = []
    for track in worst_first(files):
        cells = [track_cell(entries[track])]
        cells += [Cell(number(figures.get(track))) for _, figures in columns]
        cells += [_verbatim(rows, metric, track) for _, metric in tests]
        table.append((*cells, _remembered(shares.get(track), bool(gold.get(track)))))
    against = f"{files.loss} as a share of " + ("gold's" if gold else "held-out music's")
    heads = (*(head for head, _ in columns), *(head for head, _ in tests), against)
    return Table(("track", *heads), tuple(table))


def _verbatim(rows: Mapping[tuple[str, str], Mapping[str, float | None]], metric: str, track: str) -> Cell:
    """ "before → after" of a test that a track passes or not; its figure is the share of right codes."""
    before, after = (rows.get((metric, role), {}).get(track) for role in ("base", "unlearned"))
    was, now = (YES_NO[None if value is None else value >= MATCH] for value in (before, after))
    return Cell(f"{was} → {now}", state="bad" if now == "yes" else "")


def _remembered(share: float | None, gold: bool) -> Cell:
    if share is None:
        return Cell("–")
    return Cell(percent(share), state="bad" if share < 0.5 else "good" if gold and 0.9 <= share <= 1.1 else "")


def track_cell(entry: Mapping[str, Any]) -> Cell:
    """A track by its title, with how much of it was read, where that is known, and its caption."""
    title, seconds = str(entry.get("title") or entry["id"]), entry.get("seconds")
    length = f"{seconds:.1f}\N{NO-BREAK SPACE}s" if isinstance(seconds, (int, float)) else ""
    return Cell(title, " · ".join(filter(None, (length, str(entry.get("caption") or "")))))


def more_tracks(files: RunFiles) -> list[Table]:
    """Whatever other metrics say of single forget tracks of the unlearned model."""
    shown = {"nll", "relearn", "verbatim", "verbatim_caption"}
    chosen = [
        row for row in files.results
        if row.set == "forget" and row.model == "unlearned" and row.per_track and row.metric not in shown
        and not row.metric.startswith("nll_codebook") and not _compares(row)
    ]  # fmt: skip
    names = {str(entry["id"]): track_cell(entry) for entry in files.request["forget"]}
    tables = []
    for start in range(0, len(chosen), COLUMNS):
        part = chosen[start : start + COLUMNS]
        measured = {track for row in part for track in row.per_track}
        rows = tuple(
            (Cell(cell.text), *(Cell(number(row.per_track.get(track))) for row in part))
            for track, cell in names.items() if track in measured
        )  # fmt: skip
        tables.append(Table(("track", *(row.metric for row in part)), rows))
    return tables


def similarity(files: RunFiles) -> Table | None:
    """What of a forget track a simple prompt recovers, before and after: of each kind of similarity, yes or no.

    Of metrics whose `details` name the `best` generation of each track and a `threshold` of chance.
    """
    rows = {(row.metric, row.model): row for row in files.results if row.set == "forget" and _compares(row)}
    order = [spec.name for spec in row_specs()]
    metrics = sorted(
        (metric for metric, role in rows if role == "unlearned"),
        key=lambda metric: order.index(metric) if metric in order else len(order),
    )
    if not metrics:
        return None
    table = []
    for entry in files.request["forget"]:
        track = str(entry["id"])
        cells = [_similar(rows.get((metric, "base")), rows[metric, "unlearned"], track) for metric in metrics]
        table.append((Cell(track_cell(entry).text), *cells))
    return Table(("track", *map(short, metrics)), tuple(table))


def _compares(row: Result) -> bool:
    return isinstance(row.details.get("best"), Mapping) and bool(row.per_track)


def short(metric: str) -> str:
    """A row on the forget tracks in a word or two."""
    spec = spec_of(metric, "forget")
    return spec.short if spec is not None and spec.short else metric


def _similar(before: Result | None, after: Result, track: str) -> Cell:
    """Whether it is recovered, before and after; below that, the highest similarity now, and chance."""
    was, now = (above_chance(row, track) if row else None for row in (before, after))
    level = after.details.get("threshold")
    chance = f", chance\N{NO-BREAK SPACE}{number(float(level))}" if isinstance(level, (int, float)) else ""
    return Cell(f"{YES_NO[was]} → {YES_NO[now]}", number(after.per_track.get(track)) + chance, "bad" if now else "")


def above_chance(row: Result, track: str) -> bool | None:
    """Whether a generation is more similar to the track than chance makes it; None where that is not known."""
    value, level = row.per_track.get(track), row.details.get("threshold")
    return value > level if value is not None and isinstance(level, (int, float)) else None


def everything(files: RunFiles) -> list[Table]:
    """Every measured row, a table for each first word of a metric's name, known to this Encore or not."""
    groups: dict[str, list[Result]] = {}
    for row in files.results:
        if row.value is not None:
            groups.setdefault(row.metric.partition("_")[0], []).append(row)
    known = list(dict.fromkeys(spec.name.partition("_")[0] for spec in row_specs()))
    order = sorted(groups, key=lambda name: (known.index(name) if name in known else len(known), name))
    heads = ("figure", "on", "model", "value", "95\N{NO-BREAK SPACE}% interval", "n", "notes")
    return [Table(heads, tuple(map(_row, groups[name])), title=name) for name in order]


def _row(row: Result) -> tuple[Cell, ...]:
    notes = "; ".join(filter(None, [row.note or "", *_details(row.details)]))
    return (
        Cell(row.metric, unit_text(row.unit)), Cell(row.set), Cell(NAMES.get(row.model, row.model)),
        Cell(number(row.value)), Cell(_interval(row)), Cell(str(row.n or "")), Cell(notes),
    )  # fmt: skip


def _details(details: Mapping[str, Any]) -> Iterator[str]:
    for name, value in details.items():
        if isinstance(value, bool) or value is None:
            yield f"{name}: {value}"
        elif isinstance(value, (int, float)):
            yield f"{name}: {value:g}"
        elif isinstance(value, str):
            yield f"{name}: {value[:SHORT]}"


def not_measured(files: RunFiles) -> list[tuple[str, str]]:
    """Each reason why figures are missing, and which they are."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for row in files.results:
        if row.value is None:
            models = reasons.setdefault(row.why or "no reason is given", {}).setdefault(f"{row.metric}, {row.set}", [])
            models.append(NAMES.get(row.model, row.model))
    return [
        (why, "; ".join(f"{name} ({', '.join(models)})" for name, models in figures.items()))
        for why, figures in reasons.items()
    ]


def of_figure(figure: Figure) -> Table:
    """The numbers that a figure is drawn from."""
    rows = [
        (Cell(line.label), Cell(number(x)), Cell(number(y)))
        for line in figure.lines for x, y in zip(line.x, line.y, strict=True)
    ]  # fmt: skip
    return Table(("line", figure.x, figure.y), tuple(rows))


def _figure(row: Result | None) -> Cell:
    if row is None:
        return Cell("")
    if row.value is None:
        return Cell("–", "not measured")
    if of_tracks(row):
        return Cell(f"{verdict.count(row)} of {row.n}")
    bias = row.details.get("bias")
    aside = f"bias about {number(bias)}" if isinstance(bias, float) else ""
    return Cell(number(row.value), "; ".join(filter(None, [_interval(row), aside])))


def of_tracks(row: Result) -> bool:
    """Whether a figure is a share of tracks, which reads best as how many of how many."""
    return reproduces(row) or (row.unit == "share" and row.metric.endswith("_flagged"))


def _interval(row: Result) -> str:
    return f"{number(row.low)} to {number(row.high)}" if row.low is not None and row.high is not None else ""


def _unit(line: SummaryRow) -> str:
    if any(map(of_tracks, line.figures.values())):
        return "tracks"
    return next((row.unit for row in line.figures.values() if row.unit), "")
