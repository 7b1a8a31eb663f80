"""`check.html`: one page that says what `encore check` tried, what it found, and what it does not show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from encore.report import embedded_audio
from encore.report.page import SIMILAR, Player, environment, policy, style_sheet, utc_text
from encore.report.tables import Cell, Table
from encore.store.run_folder import write_bytes

NAME = "check.html"
LABELS = {"memorised": "memorised", "trained_on": "in training data", "no_sign": "no sign"}
DOUBTS = (
    "No sign under these tests is not a proof that a track is not in the model: other prompts, more samples or other "
    "offsets may show it.",
    "A track can have been trained on without being memorised. Only the membership tests look for that; they need "
    "held-out music of the same kind, and detect little where each track was seen a few times.",
    "A verdict is on these files under this model. Another recording, remix or cover of a piece is another track.",
    "Verdicts on memorised tracks rest on what the model generates and predicts. They do not say how a track came into "
    "the training data, nor whether that was lawful.",
)


def write_check_page(result: Mapping[str, Any], folder: Path) -> Path:
    """Write the page of a check into its folder; returns where it is.

    Args:
        result: the content of `check.json`.
        folder: has the samples that it names.

    Raises:
        EncoreError: the page can't be written.
    """
    page = folder / NAME
    write_bytes(page, render_check(result, folder).encode("utf-8"))
    return page


def render_check(result: Mapping[str, Any], folder: Path) -> str:
    """The page of a check as text; arguments as in `write_check_page`."""
    style = style_sheet()
    found = [track for track in result["tracks"] if track["verdict"] != "no_sign"]
    return environment().get_template("check.html").render(
        **_words(result),
        model=Path(str(result["model"]["name"])).name,
        found=list(map(_entry, found)),
        unsigned=[_entry(track) for track in result["tracks"] if track["verdict"] == "no_sign"],
        samples=[_player(track, folder) for track in found if "sample" in track],
        artists=_artists(result),
        tracks=_tracks(result),
        encore=result["encore"],
        style=Markup(style),
        policy=policy(style),
    )  # fmt: skip


def headline(result: Mapping[str, Any]) -> str:
    """The outcome of a check in one sentence."""
    summary, checked = result["summary"], len(result["tracks"])
    of = "the track" if checked == 1 else f"{checked} tracks"
    if summary["memorised"]:
        of = "1 track" if checked == 1 else of
        return f"{summary['memorised']} of {of} {_is(summary['memorised'])} memorised by the model"
    if summary["trained_on"]:
        of = "1 track" if checked == 1 else of
        return f"{summary['trained_on']} of {of} {_is(summary['trained_on'])} in the model's training data"
    return f"No sign of {of} was found under these tests"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _words(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says in sentences and lists."""
    summary, calibration = result["summary"], result["calibration"]
    level = "bad" if summary["memorised"] else "open"
    counted = [f"{summary[name]} {label}" for name, label in LABELS.items()]
    if summary["not_checked"]:
        counted.append(f"{summary['not_checked']} not checked")
    if calibration["tracks"]:
        compared = f"Compared with {calibration['tracks']} held-out tracks ({calibration['source']})."
        if calibration["compared"] is not None:
            compared += (
                f" Of {calibration['compared']} that the model was also prompted for, {calibration['extracted']} were "
                "reproduced."
            )
    else:
        compared = (
            "There was no held-out music to compare with (--holdout): membership and similarity were not tested, and "
            "the likelihood of memorised tracks was taken from the size of the codebook."
        )
    whole = result["list"]
    list_p = ""
    if whole:
        list_p = (
            f"All {whole['tracks']} tracks together: p = {whole['p']:.2g} if the model predicts them no better than "
            "held-out music" + (" (not reliable, see the notes)." if whole["doubt"] else ".")
        )
    hashes = [("model", result["model"]["sha256"])]
    hashes += [(f"track {track['id']}", track["sha256"]) for track in result["tracks"]]
    made = [("seed", str(result["seed"])), ("samples per prompt", str(result["samples"]))]
    made += [(name, str(value)) for name, value in result["versions"].items()]
    made += [(f"run on: {name}", str(value)) for name, value in result["hardware"].items()]
    made.append(("time", f"{result['seconds']:.1f} s"))
    return {
        "headline": headline(result), "level": level, "counted": ", ".join(counted) + ".", "calibration": compared,
        "dates": [("checked", utc_text(result["checked"]))], "list_p": list_p, "doubts": DOUBTS,
        "tests": [test["test"] + (f": not tried, {test['why']}" if test["why"] else "") for test in result["tests"]],
        "notes": result["notes"],
        "not_checked": [
            item["why"] + (f" ({item['hint']})" if item["hint"] else "") for item in result["not_checked"]
        ],
        "unit": next((track["evidence"]["nll"]["unit"] for track in result["tracks"]), "nats/token"),
        "made_with": made, "hashes": hashes,
    }  # fmt: skip


def _entry(track: Mapping[str, Any]) -> dict[str, Any]:
    small = ", ".join(
        str(part) for part in (track["artist"], Path(track["file"]).name, f"{track['seconds']:.1f} s") if part
    )
    return {
        "name": track["title"] or track["id"], "label": LABELS[track["verdict"]], "sentences": track["sentences"],
        "small": small,
    }  # fmt: skip


def _player(track: Mapping[str, Any], folder: Path) -> Player:
    address = Markup(embedded_audio.file_uri(folder / track["sample"]))
    return Player(Cell(track["title"] or track["id"], track["caption"]), SIMILAR, [("generated", address)], track["id"])


def _artists(result: Mapping[str, Any]) -> Table | None:
    several = [entry for entry in result["artists"] if len(entry["tracks"]) > 1]
    if not several:
        return None
    rows = tuple(
        (Cell(str(e["artist"])), Cell(str(len(e["tracks"]))), Cell(f"{e['p']:.2g}"), Cell(f"{e['p_adjusted']:.2g}"))
        for e in several
    )
    return Table(("artist", "tracks", "p (held-out)", "corrected"), rows)


def _tracks(result: Mapping[str, Any]) -> Table:
    def share(track: Mapping[str, Any], kind: str) -> str:
        found = [item["share"] for item in track["evidence"]["extraction"] if item["prompt"].startswith(kind)]
        return f"{max(found):.0%}" if found else "–"

    rows = []
    for track in result["tracks"]:
        nll, member = track["evidence"]["nll"], track["evidence"]["membership"]
        rows.append((
            Cell(track["title"] or track["id"], track["id"] if track["title"] else ""),
            Cell(LABELS[track["verdict"]], state="bad" if track["verdict"] != "no_sign" else ""),
            Cell(f"{nll['value']:.2f}"), Cell(share(track, "caption")), Cell(share(track, "1 s")),
            Cell("–" if member["p"] is None else f"{member['p']:.2g}"),
        ))  # fmt: skip
    return Table(("track", "verdict", "NLL", "from caption", "from 1 s", "p (held-out)"), tuple(rows))
