"""`report.html`: one file that loads nothing, runs nothing, and shows what strangers wrote as text."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from encore import __version__
from encore.errors import InputError
from encore.report import embedded_audio, svg, tables, verdict
from encore.report.commands import commands
from encore.report.figures import Figure, figures
from encore.report.run_files import REPORT, RunFiles, Sample, read_run
from encore.report.track_chart import pictures, worst_first
from encore.results.findings import Finding
from encore.store.run_folder import write_bytes, writing
from encore.text import printable

SIMILAR = "similar"  # the set of samples that are most similar to a track
VARIANTS = {"greedy": "likeliest tokens", "short": "shorter description"}
LISTED = {"target", "gap", "no_evidence", "farthest_track"}  # codes of findings that the page shows otherwise
STRIPS = 12  # tracks of a picture that are shown at once; the others open
MONTHS = (  # which strftime would write in the language of whoever makes the report
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
NO_DRAWING = "These figures are shown as tables, because matplotlib was not installed when this report was made."


@dataclass(frozen=True)
class Player:
    """One track's players: labels and addresses of the audio, in the order of listening."""

    track: tables.Cell
    set: str
    players: Sequence[tuple[str, str]]
    id: str = ""


@dataclass(frozen=True)
class Drawn:
    """A figure, its picture where it could be drawn, and its numbers."""

    figure: Figure
    picture: Markup | None
    numbers: tables.Table


def write_report(run: Path, *, measured: Path | None = None, out: Path | None = None, originals: bool = False) -> Path:
    """Make the report of a complete, measured run, whole or not at all; returns where it is.

    Args:
        measured: where `metrics.json` and samples are, if not in the run's folder.
        out: the file, in a folder that is made where it is missing; default: `report.html` beside the figures.
        originals: embed the forgotten tracks themselves, to compare by ear.

    Raises:
        InputError: the run is not complete or not measured, or a file of it can't be read.
        EncoreError: the report can't be written.
    """
    files = read_run(run, measured=measured)
    target = out or (measured or run) / REPORT
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, render(files, originals=originals).encode("utf-8"))
    return target


def render(files: RunFiles, *, originals: bool = False, plots: bool = True) -> str:
    """The page as text.

    Args:
        originals: embed the forgotten tracks.
        plots: draw the figures with matplotlib where it is installed; else they are tables alone.

    Raises:
        InputError: the run's files are not those of this version, or an original is gone.
    """
    with _reading(files.folder):
        context, drawn = _context(files), figures(files)
        entries = {str(entry["id"]): entry for name in ("forget", "retain") for entry in files.request[name]}
    can_draw = plots and svg.can_draw()
    themselves = _originals(files) if originals else {}
    context |= {
        "figures": [
            Drawn(figure, _picture(figure) if can_draw else None, tables.of_figure(figure)) for figure in drawn
        ],
        "no_drawing": "" if can_draw or not plots else NO_DRAWING,
        "samples": _samples(files, entries, themselves),
        "similar": _similar(files, entries, themselves),
        "audio_note": verdict.audio_note(files, originals=originals),
        "originals": originals,
    }
    style = style_sheet()
    return environment().get_template("report.html").render(**context, style=Markup(style), policy=policy(style))


def policy(style: str) -> str:
    """The page's Content-Security-Policy: its own style sheet by hash, pictures and sound from within, nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; media-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


@functools.cache  # a template is compiled once: that takes longer than filling it in
def environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("encore.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: Any) -> Any:
    """Control characters, line breaks and marks that turn text around are shown as escapes, wherever text comes in."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else printable(value)


def style_sheet() -> str:
    return (Path(__file__).parent / "templates" / "report.css").read_text("utf-8").strip()


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn what a file of another shape runs into, into one sentence."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError) as error:
        raise InputError(f"{folder} was not written by this version of Encore: {error!r}", "run it again") from error


def _context(files: RunFiles) -> dict[str, Any]:
    """What the page says in words and numbers."""
    findings, drawn, tests = files.findings, pictures(files), tables.tests(files)
    found = verdict.verdict(files)
    order = worst_first(files)
    return {
        "model": Path(str(files.run["model"]["name"])).name,
        "run": files.run,
        "loss": files.loss,
        "task": verdict.task(files),
        "dates": _dates(files),
        "headline": found.headline,
        "level": found.level,
        "doubts": verdict.doubts(files),
        "glossary": verdict.glossary(files),
        "first": drawn[:1],
        "further": drawn[1:],
        "strips": STRIPS,
        "worst": order[0] if order else "",
        "failed": [test for test in tests if test.met is False],
        "passed": [test for test in tests if test.met],
        "not_judged": [test for test in tests if test.met is None],
        "findings": [finding for finding in findings if finding.level != "info" and finding.code != "target"],
        "notes": _notes(files, findings),
        "targets": tables.targets(files),
        "trusted": bool(files.trust),
        "tracks": tables.tracks(files),
        "recovered": verdict.recovered(files.results),
        "similarity": tables.similarity(files),
        "more_tracks": tables.more_tracks(files),
        "everything": tables.everything(files),
        "not_measured": tables.not_measured(files),
        "made_with": _made_with(files),
        "hashes": _hashes(files),
        "commands": commands(files),
        "part": verdict.part(files),
        "encore": __version__,
    }


def _notes(files: RunFiles, findings: Sequence[Finding]) -> list[str]:
    """What else there is to know, each sentence once."""
    notes = [finding.text for finding in findings if finding.level == "info" and finding.code not in LISTED]
    return list(dict.fromkeys([*notes, *files.run.get("notes", []), *files.evaluation.get("notes", [])]))


def _dates(files: RunFiles) -> list[tuple[str, str]]:
    """Who asked, and when what was done, where the run's files have it."""
    request = files.request
    dates = [
        ("requested by", request.get("requester")), ("requested", utc_text(request.get("requested"))),
        ("run started", utc_text(request.get("begun"))), ("run finished", utc_text(files.run.get("finished"))),
        ("evaluated", utc_text(files.evaluation.get("measured"))),
    ]  # fmt: skip
    return [(name, str(value)) for name, value in dates if value]


def utc_text(text: Any) -> Any:
    """A time such as 2026-11-28T16:20:05Z for a reader, "28 November 2026, 16:20 UTC"; anything else as it is."""
    try:
        when = datetime.fromisoformat(text)
        when = when.astimezone(UTC) if when.tzinfo else when
    except (TypeError, ValueError, OverflowError):
        return text
    day = f"{when.day} {MONTHS[when.month - 1]} {when.year}"
    return f"{day}, {when:%H:%M} UTC" if when.tzinfo else day


# ------------------------------------------------------------------------------------------------- sound and pictures


def _picture(figure: Figure) -> Markup:
    return Markup("data:image/svg+xml;base64," + base64.b64encode(svg.svg(figure).encode()).decode())


def _samples(files: RunFiles, entries: Mapping[str, Any], originals: Mapping[str, str]) -> list[Player]:
    """Forget tracks first, then those to keep; each before, after and gold, and the original where it is given."""
    labels = {"base": "before", "unlearned": "after", "gold": "gold"}
    groups: dict[tuple[str, str, str], list[Sample]] = {}
    for sample in files.samples:
        if sample.set == SIMILAR:
            continue
        number = sample.path.name.partition("-")[0]  # a track has several where it is longer than the model's window
        groups.setdefault((sample.set, sample.track, number), []).append(sample)
    tracks = []
    for (name, track, _), samples in sorted(groups.items(), key=lambda group: group[0][0] != "forget"):
        entry = entries.get(track, {"id": track, "caption": samples[0].caption})
        players = [("original", originals[track])] if name == "forget" and track in originals else []
        ordered = sorted(samples, key=lambda sample: list(labels).index(sample.role))
        players += [(labels[sample.role], embedded_audio.file_uri(sample.path)) for sample in ordered]
        tracks.append(Player(tables.track_cell(entry), name, _safe(players), track))
    return tracks


def _similar(files: RunFiles, entries: Mapping[str, Any], originals: Mapping[str, str]) -> list[Player]:
    """Of each forget track the generations that are most similar to it, beside the track where that is given."""
    tracks = []
    for track in (str(entry["id"]) for entry in files.request["forget"]):
        players = []
        for sample in files.samples:
            if (sample.set, sample.track) == (SIMILAR, track):
                kinds = ", ".join(tables.short(f"similarity_{kind}") for kind in sample.kinds)
                variant, comma, number = sample.variant.partition(", ")  # "short, 1 of 3"
                label = f"{kinds}: {VARIANTS.get(variant, variant)}{comma}{number}"
                players.append((label, embedded_audio.file_uri(sample.path)))
        if players:
            itself = [("original", originals[track])] if track in originals else []
            tracks.append(Player(tables.track_cell(entries[track]), SIMILAR, _safe([*itself, *players]), track))
    return tracks


def _safe(players: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Addresses, which are ours, as they are."""
    return [(label, Markup(address)) for label, address in players]


def _originals(files: RunFiles) -> dict[str, str]:
    """The tracks to forget, as they were encoded, by id."""
    from encore.data.decode import load
    from encore.data.relocate import PathRelocator, listed_track

    with _reading(files.folder):
        here = PathRelocator(Path(files.request["folder"]), files.folder)
        listed = [listed_track(entry) for entry in files.request["forget"]]
    originals = {}
    for track in listed:
        if track.shards is not None:  # its audio is not read
            continue
        audio = load(here.find(track).path, sample_rate=32_000, channels=1)
        originals[track.id] = embedded_audio.data_uri(audio.samples[0], 32_000)
    return originals


# ------------------------------------------------------------------------------------------------------------ record


def _made_with(files: RunFiles) -> list[tuple[str, str]]:
    """Environment, settings and timings, as name and value."""
    run, how = files.run, files.evaluation
    hardware = run.get("hardware", {})
    rows = [("method", str(run["method"])), ("seed", str(run["seed"])), ("precision", str(run["precision"]))]
    rows += [(f"option {name}", f"{s['value']} ({s['from']})") for name, s in run["options"].items()]
    rows += [(name, str(version)) for name, version in run["versions"].items()]
    rows += [(f"run on: {name}", str(value)) for name, value in hardware.items()]
    rows += [(f"measured on: {name}", str(value)) for name, value in how.get("hardware", {}).items()]
    rows += [(f"time: {name}", f"{seconds:.1f} s") for name, seconds in run.get("timings", {}).items()]
    if "cost" in run:
        rows.append(("memory at most", f"{run['cost']['peak_bytes'] / 1e9:.2f} GB"))
        rows.append(("trained on", f"{run['cost']['tokens_per_second']:.0f} tokens/s"))
    if "seconds" in how:
        rows.append(("time: eval", f"{how['seconds']:.1f} s"))
    rows += [(f"embedder {name}", str(identity)) for name, identity in how.get("embedders", {}).items()]
    return rows


def _hashes(files: RunFiles) -> list[tuple[str, str]]:
    """SHA-256 of weights, plugins and tracks."""
    run = files.run
    rows = [("weights before", str(run["model"]["sha256"])), ("weights after", str(run.get("unlearned_sha256", "")))]
    rows += [(f"weights of {role}", str(h)) for role, h in files.evaluation.get("models", {}).items() if "gold" in role]
    rows += [(f"plugin {p['distribution']} {p['version']}", str(p["sha256"])) for p in run["plugins"]]
    rows += [(f"track {entry['id']}", str(entry["sha256"])) for entry in files.request["forget"]]
    return rows
