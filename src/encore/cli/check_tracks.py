"""`encore check`: is a track in the model, without unlearning anything?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from encore.cli import console
from encore.cli.config import MAX_SEED, Device, Family, Json, Offline, Revision, Roots
from encore.errors import GateError, NotCheckedError, UsageError
from encore.text import counted


def check(
    tracks: Annotated[str, typer.Option(help="List of tracks to check, a folder of audio files, or one file.")],
    model: Annotated[str, typer.Option(help="`tiny`, a run folder, a model folder, or a hub name.")] = "tiny",
    backend: Family = None,
    catalog: Annotated[Path | None, typer.Option(help="Catalogue for id: lines, captions and held-out tracks.")] = None,
    holdout: Annotated[
        str | None,
        typer.Option(
            help='List or folder of held-out music of the same kind; default: the catalogue\'s split "holdout".'
        ),
    ] = None,
    gold: Annotated[
        str | None, typer.Option(help="A model trained without the tracks: what it also does is not evidence.")
    ] = None,
    root: Roots = None,
    revision: Revision = None,
    samples: Annotated[
        int, typer.Option(min=1, max=1000, help="Samples generated from each prompt of one second.")
    ] = 3,
    full: Annotated[
        bool, typer.Option("--full", help="Search all offsets of long tracks: takes minutes for each.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for check.json, check.html and samples.")] = Path("check"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier check in --out.")] = False,
    fail_on_found: Annotated[
        bool, typer.Option("--fail-on-found", help="Exit with 4 where a track is found, for scripts.")
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of samples, and of choosing held-out tracks.")
    ] = 0,
    device: Device = "auto",
    offline: Offline = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compute results of models again, and store none.")
    ] = False,
    json: Json = False,
) -> None:
    """Check which tracks a model has memorised or was trained on.

    No track is unlearned, and no gold model is needed. "No sign" is a statement about these tests: it never means that
    a track is not in the model.
    """
    if not tracks.strip() or (holdout is not None and not holdout.strip()):
        raise UsageError("--tracks and --holdout need a name", "write . for the current folder")
    if tracks == "-" == holdout:
        raise UsageError("only one list can come from the standard input", "write the other one into a file")
    existing = [out / name for name in ("check.json", "check.html") if (out / name).exists()]
    if existing and not overwrite:
        raise UsageError(f"{existing[0]} exists already", "choose another --out, or replace it with --overwrite")

    from encore.check.config import CheckConfig
    from encore.check.run import check_tracks
    from encore.cli.progress import reporting
    from encore.store.environment import keep_freed_memory
    from encore.store.model_name import backend_name

    keep_freed_memory()
    config = CheckConfig(
        model, backend_name(model, backend), tracks, catalog=catalog, holdout=holdout, gold=gold, roots=root or (),
        revision=revision, samples=samples, full=full, seed=seed, device=device, offline=offline, cache=not no_cache,
    )  # fmt: skip
    with reporting() as reporter:
        result = check_tracks(config, out, reporter)
    if json:
        console.data_json(result)
    else:
        _show(result)
        console.note(f"to read: {out / 'check.html'}; for programs: {out / 'check.json'}")
    found = result["summary"]["memorised"] + result["summary"]["trained_on"]
    if found and fail_on_found:
        raise GateError(f"{found} of {len(result['tracks'])} tracks were found in {model}", f"see {out / 'check.html'}")
    if result["not_checked"]:
        raise NotCheckedError(
            f"{counted(len(result['not_checked']), 'track')} could not be checked: "
            + "; ".join(item["why"] for item in result["not_checked"]),
            "\n".join(dict.fromkeys(item["hint"] for item in result["not_checked"] if item["hint"])),
        )


def _show(result: Mapping[str, Any]) -> None:
    from encore.report.check_page import LABELS, headline

    rows = []
    for track in result["tracks"]:
        evidence = track["evidence"]
        shares = [
            max((item["share"] for item in evidence["extraction"] if item["prompt"].startswith(kind)), default=None)
            for kind in ("caption", "1 s")
        ]
        p = evidence["membership"]["p"]
        rows.append((
            track["id"], LABELS[track["verdict"]], f"{evidence['nll']['value']:.2f}",
            *("" if share is None else f"{share:.0%}" for share in shares), "" if p is None else f"{p:.2g}",
            track["sentences"][0],
        ))  # fmt: skip
    console.table(
        ["track", "verdict", "NLL", "from caption", "from 1 s", "p", "evidence"], rows,
        right=["NLL", "from caption", "from 1 s", "p"],
    )  # fmt: skip
    console.data(headline(result))
    whole = result["list"]
    if whole:
        doubt = " (not reliable)" if whole["doubt"] else ""
        console.data(
            f"all of them together: p = {whole['p']:.2g} under the hypothesis that the model predicts them no better "
            f"than held-out music{doubt}"
        )
    for test in result["tests"]:
        if not test["tried"]:
            console.note(f"not tried: {test['test']} ({test['why']})")
    for note in result["notes"]:
        console.note(note)
