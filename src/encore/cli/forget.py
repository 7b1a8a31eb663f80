"""`encore forget`: make a model forget the tracks of a list."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encore.cli import console
from encore.cli.config import ConfigFile, MethodOptions, method_settings, origins

if TYPE_CHECKING:
    from encore.runs.forget import Prepared

METHOD_FLAGS = ("steps", "lr", "batch_size")


def forget(
    context: typer.Context,
    tracks: Annotated[
        str, typer.Option(help="List of tracks to forget: one path, id:, isrc: or sha256: a line; - for stdin.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the run; must not hold one yet.")] = Path("runs/latest"),
    model: Annotated[str, typer.Option(help="`tiny` (embedded), a folder, or a hub name.")] = "tiny",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never go to the network.")] = False,
    backend: Annotated[str, typer.Option(help="Model family; see `encore backends`.")] = "musicgen",
    method: Annotated[str, typer.Option(help="Unlearning method; see `encore methods`.")] = "encore",
    option: MethodOptions = None,
    config: ConfigFile = None,
    catalog: Annotated[
        Path | None, typer.Option(help="Catalogue that id:, isrc: and sha256: lines are looked up in.")
    ] = None,
    retain: Annotated[
        str | None, typer.Option(help="List of tracks to keep, or `self`; default: the catalogue less the list.")
    ] = None,
    holdout: Annotated[
        Path | None, typer.Option(help="List of tracks of the same source the model never heard.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Go on without lines that match nothing.")
    ] = False,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Take tracks of the list out of retain.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; default: the method's.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; default: the method's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Retain clips a step; default: the method's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random draw.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run begun in --out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would happen, with time and memory, and stop.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a model forget the tracks of a list, and write the result as a run folder."""
    from encore import plugins

    chosen = plugins.methods().resolve(method)
    settings = method_settings(context, chosen.Options, option, METHOD_FLAGS)

    from encore.cli.progress import reporting
    from encore.runs.forget import Request, prepare
    from encore.runs.forget import forget as run_forget

    request = Request(
        tracks=tracks if tracks == "-" else Path(tracks), out=out, model=model, revision=revision, offline=offline,
        backend=backend, catalog=catalog, retain=retain, holdout=holdout, allow_missing=allow_missing,
        drop_duplicates=drop_duplicates, seed=seed, device=device, precision=precision, resume=resume,
    )  # fmt: skip
    with reporting() as reporter:
        prepared = prepare(request, chosen(settings.options), reporter)
    if not json:
        _show_tracks(prepared)
    for note in prepared.notes:
        console.note(note)
    if dry_run:
        _show_plan(prepared, json)
        return
    with reporting() as reporter:
        run = run_forget(prepared, {**origins(context), **settings.origin}, reporter)
    if json:
        console.data_json({**run, "run": str(out), "tracks": prepared.tracks.as_json()})
    else:
        _show_outcome(run, out)


def _show_tracks(prepared: Prepared) -> None:
    rows: list[tuple[object, ...]] = [
        (heard.track.line, heard.track.id, heard.track.path, heard.track.sha256[:16], f"{heard.seconds:.1f} s")
        for heard in prepared.forget
    ]
    rows += [
        (missing.line, missing.source, f"not found: {missing.reason}", "", "") for missing in prepared.tracks.missing
    ]
    console.table(["line", "track", "file", "sha256", "length"], rows, right=["line", "length"])
    kept = len(prepared.retain) or "no"
    console.note(
        f"forget {len(prepared.forget)} tracks; keep {kept} ({prepared.tracks.retain_source}); "
        f"compare with {len(prepared.holdout)} unseen"
    )


def _show_plan(prepared: Prepared, json: bool) -> None:
    expected = prepared.estimate()
    plan: dict[str, Any] = {
        "method": prepared.method.spec.name,
        "options": prepared.method.options.model_dump(mode="json"),
        "model": prepared.request.model,
        "forget": len(prepared.forget),
        "retain": len(prepared.retain),
        "holdout": len(prepared.holdout),
        "expected_seconds": round(expected["seconds"], 1),
        "expected_bytes": int(expected["bytes"]),
    }
    if json:
        console.data_json({"schema": 1, "dry_run": True, **plan, "tracks": prepared.tracks.as_json()})
        return
    options = plan.pop("options")
    console.table(["what", "value"], [*plan.items(), *((f"  {name}", value) for name, value in options.items())])
    console.note("nothing was written")


def _show_outcome(run: dict[str, Any], out: Path) -> None:
    outcome = run["outcome"]
    before, after = outcome["before"], outcome["after"]
    level = outcome["unseen_level"]
    console.table(
        ["track", "NLL before", "NLL after", "unseen"],
        [
            (track, f"{before['forget'][track]:.2f}", f"{value:.2f}", "" if level is None else f"{level:.2f}")
            for track, value in after["forget"].items()
        ],
        right=["NLL before", "NLL after", "unseen"],
    )
    if after["retain"] is not None:
        console.note(f"retain NLL {before['retain']:.3f} -> {after['retain']:.3f} nats a token")
    console.note(f"{outcome['steps']} steps in {run['timings']['forget']:.0f} s; the model is in {out / 'model'}")
    console.note(f"next: encore eval {out}")
