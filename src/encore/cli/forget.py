"""`encore forget`: make a model forget the tracks of a list."""

from __future__ import annotations

import itertools
import shlex
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encore.cli import console
from encore.cli.config import (
    AdapterKind,
    AllowMissing,
    Catalog,
    CheckpointActivations,
    ConfigFile,
    Device,
    Family,
    Fsdp,
    Json,
    KeepAdapter,
    LoraAlpha,
    LoraLayers,
    LoraRank,
    MaxSeconds,
    MethodOptions,
    Model,
    Offline,
    OptimizerStates,
    Precision,
    Resume,
    Revision,
    Roots,
    Seed,
    Weights,
    method_settings,
    origins,
)
from encore.errors import Interrupted, UsageError
from encore.text import counted

if TYPE_CHECKING:
    from encore.api import Method
    from encore.unlearn.config import ForgetConfig
    from encore.unlearn.run import Prepared

METHOD_FLAGS = (
    "steps", "max_seconds", "lr", "batch_size", "per_track_clip", "optim", "retain_budget", "robust_to",
)  # fmt: skip


def forget(
    context: typer.Context,
    tracks: Annotated[
        str,
        typer.Option(help="List of tracks to forget: one path, id:, isrc:, sha256: or artist: per line; - for stdin."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run, new or empty; default: runs/<date>-<time>-<method>.")
    ] = None,
    model: Model = "tiny",
    revision: Revision = None,
    offline: Offline = False,
    backend: Family = None,
    method: Annotated[
        str | None, typer.Option(help="Unlearning method; default: encore, or encore-diffusion without tokens.")
    ] = None,
    option: MethodOptions = None,
    config: ConfigFile = None,
    catalog: Catalog = None,
    retain: Annotated[
        str | None, typer.Option(help="List of tracks to keep, or `self`; default: the catalogue without the list.")
    ] = None,
    holdout: Annotated[
        Path | None,
        typer.Option(help="List of held-out tracks from the same source; default: the catalogue's split `holdout`."),
    ] = None,
    root: Roots = None,
    allow_missing: AllowMissing = False,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Drop retain and holdout tracks that are also in another set.")
    ] = False,
    skip_unreadable: Annotated[
        bool,
        typer.Option("--skip-unreadable", help="Continue without retain and holdout tracks that can't be read."),
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps at most; default: the method's.")] = None,
    max_seconds: MaxSeconds = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; default: the method's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Retain clips per step; default: the method's.")] = None,
    per_track_clip: Annotated[
        float | None, typer.Option(help="Clip each track's gradient to this norm, so that none dominates a step.")
    ] = None,
    optim: Annotated[
        str | None, typer.Option(help="adamw, sam, sign or repselect: how gradients become steps.")
    ] = None,
    retain_budget: Annotated[
        float | None, typer.Option(help="Largest rise of the retain NLL: the retain loss is weighted to stay below it.")
    ] = None,
    robust_to: Annotated[
        str | None, typer.Option(help="int4 or int8: train through rounded weights, against quantisation.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    weights: Weights = "fp32",
    optimizer_states: OptimizerStates = "fp32",
    checkpoint_activations: CheckpointActivations = "auto",
    adapter: AdapterKind = None,
    lora_rank: LoraRank = None,
    lora_alpha: LoraAlpha = None,
    lora_layers: LoraLayers = None,
    keep_adapter: KeepAdapter = False,
    fsdp: Fsdp = False,
    requester: Annotated[
        str | None, typer.Option(help="Who requested the opt-out, for the record: a name, a case number.")
    ] = None,
    requested: Annotated[
        str | None, typer.Option(help="When it was requested, for the record: a date such as 2026-11-28.")
    ] = None,
    resume: Resume = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="First try settings on retain tracks, on a copy of the model, to choose lr and steps where not given.",
        ),
    ] = False,
    tracker: Annotated[
        str | None, typer.Option(help="Also send the figures of each step and snapshot to TensorBoard or W&B.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan with expected time and memory, then exit.")
    ] = False,
    json: Json = False,
) -> None:
    """Make a model forget the tracks of a list, and write the result as a run folder.

    Exit code 4: the run is there, and misses a target that can be judged without gold: the NLL of the forget tracks,
    what memorised and other retain tracks and held-out music may lose, or verbatim generations.
    """
    from encore import distributed, plugins
    from encore.store.dates import check_date
    from encore.store.environment import keep_freed_memory
    from encore.store.model_name import backend_name
    from encore.unlearn.config import ForgetConfig

    with distributed.processes(device):
        family = backend_name(model, backend)
        method = method or plugins.backends().resolve(family).default_method()
        chosen = plugins.methods().resolve(method)
        settings = method_settings(context, chosen.Options, option, METHOD_FLAGS)
        if resume and out is None:
            raise UsageError("--resume needs --out: which run should be continued?", "name its folder")
        if tracks == "-" and distributed.size() > 1:
            raise UsageError("--tracks - reads one stream, and there are several processes", "write the list to a file")
        if tracker is not None:
            from encore.unlearn.tracking import check_tracker

            check_tracker(tracker)
        keep_freed_memory()
        request = ForgetConfig(
            tracks=tracks if tracks == "-" else Path(tracks), out=distributed.first(out or _fresh(method)), model=model,
            revision=revision, offline=offline, backend=family, catalog=catalog, retain=retain,
            holdout=holdout, roots=tuple(root or ()), allow_missing=allow_missing, drop_duplicates=drop_duplicates,
            skip_unreadable=skip_unreadable, seed=seed, device=device, precision=precision, resume=resume,
            requester=requester, requested=check_date(requested) if requested is not None else None,
            calibrate=calibrate, fsdp=fsdp, adapter=adapter, lora_rank=lora_rank, lora_alpha=lora_alpha,
            lora_layers=lora_layers, keep_adapter=keep_adapter, checkpoint_activations=checkpoint_activations,
            weights=weights, optimizer_states=optimizer_states,
        )  # fmt: skip
        origin = {**origins(context), **settings.origin}
        _forget(request, chosen(settings.options), origin, tracker=tracker, dry_run=dry_run, json=json)


def _forget(
    request: ForgetConfig, method: Method, origin: dict[str, Any], *, tracker: str | None, dry_run: bool, json: bool
) -> None:
    from encore import distributed
    from encore.cli.progress import reporting
    from encore.unlearn import run as runs
    from encore.unlearn.calibrate import calibrate as calibration
    from encore.unlearn.calibrate import restored

    out, ready = request.out, restored(request, method)
    run = distributed.first(runs.finished(request, ready) if distributed.rank() == 0 else None)
    if run is not None:
        console.note(f"nothing to do: the run in {out} is complete")
        if json:
            console.data_json({**run, "run": str(out)})
        runs.check_missed(run)
        return
    runs.check_unusable(request)
    with reporting() as reporter:
        selected = runs.choose(request, reporter)
        prepared = runs.prepare(request, ready, reporter, tracks=selected)
    if not json:
        _show_tracks(prepared)
    for note in prepared.notes:
        console.note(note)
    given = [name for name, source in origin.items() if source != "default"]
    if dry_run:
        _show_plan(prepared, given, json)
        return
    if request.calibrate:
        with reporting() as reporter:
            prepared.calibration = calibration(prepared, reporter, given=given)
        _show_calibration(prepared.calibration)
        origin |= dict.fromkeys(prepared.calibration["chosen"], "calibration")
    try:
        with reporting() as reporter:
            run = runs.forget(prepared, origin, reporter, tracker=tracker)
    except Interrupted as signal:
        console.note(
            f"stopped by {signal.name}; continue with the same command and --resume --out {shlex.quote(str(out))}"
        )
        raise
    if json:
        console.data_json({**run, "run": str(out), **prepared.listed()})
    else:
        _show_outcome(run, out, prepared)
    runs.check_missed(run)


def _fresh(method: str) -> Path:
    """A folder that no run has yet."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{method}"
    names = (Path("runs", name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(path for path in names if not path.exists())


def _show_tracks(prepared: Prepared) -> None:
    """What was read of every track, before anything is done."""
    from encore.cli.tracks import note_sets, show_tracks

    tracks = prepared.tracks
    show_tracks(prepared.forget, tracks.missing)
    console.note(
        f"forget {counted(len(tracks.forget), 'track')}; keep {len(tracks.retain) or 'none'} ({tracks.retain_source}); "
        f"compare with {len(tracks.holdout)} held-out"
    )
    note_sets({"forget": prepared.forget, "retain": prepared.retain, "holdout": prepared.holdout})


def _show_plan(prepared: Prepared, given: Collection[str], json: bool) -> None:
    from encore.unlearn.estimate import estimate, size

    expected = estimate(prepared)
    sizes = {name: len(getattr(prepared, name)) for name in ("forget", "retain", "holdout")}
    plan: dict[str, Any] = {
        "method": prepared.method.spec.name,
        "model": prepared.request.model,
        "out": str(prepared.request.out),
        "expected_seconds": None if expected.seconds is None else round(expected.seconds, 3),
        "expected_bytes": expected.peak_bytes,
        "expected_free_bytes": expected.free_bytes,
        "expected_alternatives": expected.alternatives,
        "expected_disk_bytes": expected.disk_bytes,
    }
    options = prepared.method.options.model_dump(mode="json")
    if prepared.request.calibrate and expected.seconds is not None:
        from encore.unlearn.calibrate import expected_seconds

        seconds = expected_seconds(prepared, expected.seconds, given=given)
        plan["expected_calibration_seconds"] = [round(one, 3) for one in seconds]
    if json:
        listed = prepared.listed()
        console.data_json({"schema": 1, "dry_run": True, **plan, "tracks": sizes, "options": options, **listed})
        return
    shown = [(name, value) for name, value in plan.items() if not name.startswith("expected")]
    rows = [
        *shown,
        ("expected", expected),
        *((f"  with {flags}", f"{size(peak)} of memory") for flags, peak in expected.alternatives.items()),
        *_calibrating(plan),
        *sizes.items(),
        *((f"  {name}", value) for name, value in options.items()),
    ]
    console.table(["what", "value"], rows)
    if not expected.fits:
        fitting = [flags for flags, peak in expected.alternatives.items() if peak <= (expected.free_bytes or 0)]
        advice = " or ".join(fitting) or "a smaller -o micro_batch_size, or another device"
        console.note(
            f"the run does not fit: it needs {size(expected.peak_bytes)}, and {size(expected.free_bytes or 0)} are "
            f"free; what makes it fit: {advice}"
        )
    console.note("nothing was written outside the cache")


def _calibrating(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """The row of a plan that calibrates first."""
    from encore.unlearn.estimate import duration

    least, most = plan.get("expected_calibration_seconds", (0.0, 0.0))
    words = f"about {duration(least)} if the first settings pass, at most {duration(most)}"
    return [("calibration", words)] if most else []


def _show_calibration(found: dict[str, Any]) -> None:
    options = ", ".join(f"{name} {value:g}" for name, value in found["chosen"].items()) or "the method's settings"
    rehearsals = counted(len(found["tried"]), "rehearsal")
    still = f"; the best of them misses: {'; '.join(found['missed'])}" if found["missed"] else ""
    console.note(
        f"calibration: {options}, after {rehearsals} on {counted(len(found['decoys']), 'retain track')} in "
        f"{found['seconds']:.0f} s{still}"
    )


def _show_outcome(run: dict[str, Any], out: Path, prepared: Prepared) -> None:
    from encore.memorised import memorised_below
    from encore.unlearn.checks import loss_name

    outcome = run["outcome"]
    before, after, levels = outcome["before"], outcome["after"], outcome["after"]["target_nll"]
    name = loss_name(run["unit"])
    figures = [f"{name} before", f"{name} after", "target"]
    console.table(
        ["track", *figures],
        [
            (track, _nll(before["forget"][track]), _nll(value), _nll(levels.get(track)))
            for track, value in after["forget"].items()
        ],
        right=figures,
    )
    if run["unit"] == "nats/token" and (level := outcome["holdout_nll"]) is not None:
        # Held-out tracks may be memorised themselves.
        limit = max(memorised_below(holdout, prepared.backend.codebook_size) for holdout in (level, None))
        if all(nll is not None and nll >= limit for nll in before["forget"].values()):
            console.note(
                "none of the forget tracks was memorised: their NLL was at least half of held-out music's, "
                f"{level:.2f}, so that there was little to forget"
            )
    if skipped := outcome.get("skipped_steps"):
        console.note(
            f"{skipped} of {counted(outcome['steps'], 'step')} were skipped: a loss or gradient was not finite"
        )
    for option, choice in outcome["chosen"].items():
        console.note(f"{option} chosen: {choice}")
    for line in _retain_lines(run, name):
        console.note(line)
    console.note(
        f"{counted(outcome['steps'], 'step')} in {run['timings']['forget']:.0f} s; the model is in {out / 'model'}"
    )
    console.note(f"next: encore eval {shlex.quote(str(out))}")


def _retain_lines(run: dict[str, Any], name: str) -> Iterator[str]:
    """What became of memorised and other retain tracks, of the worst one, and of held-out music."""
    outcome, tracks = run["outcome"], run["tracks"]
    of = counted(tracks["retain"], "retain track") if tracks["retain"] else "the generations kept"
    if tracks["retain_classified"] < tracks["retain"]:
        of = f"{tracks['retain_classified']} chosen at random from {of}"
    labels = {"retain_memorised": "memorised retain", "retain_not_memorised": "retain, not memorised"}
    if run["unit"] != "nats/token":
        labels["retain_not_memorised"] = "retain"  # of a loss without tokens nothing tells what is memorised
    for key, label in labels.items():
        if part := outcome[key]:
            yield f"{label}: mean {name} {_change(part)}, {counted(part['tracks'], 'track')} of {of}"
    if worst := outcome["worst"]:
        yield f"worst of the memorised: {worst['track']}, {name} {_change(worst)}"
    if outcome["held_out"]:
        yield f"held-out: mean {name} {_change(outcome['held_out'])}"


def _change(part: Mapping[str, Any]) -> str:
    before, after = ("not finite" if part[key] is None else f"{part[key]:.3f}" for key in ("before", "after"))
    return f"{before} -> {after}"


def _nll(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
