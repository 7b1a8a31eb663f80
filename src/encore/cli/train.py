"""`encore train`: make a base and a gold of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from encore.cli import console
from encore.cli.config import (
    MAX_SEED,
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
    Weights,
    method_settings,
    origins,
)
from encore.errors import Interrupted, UsageError
from encore.text import counted

if TYPE_CHECKING:
    from encore.unlearn.config import TrainConfig
    from encore.unlearn.training import Training

RECIPE_FLAGS = ("epochs", "from_scratch", "steps", "max_seconds", "lr", "batch_size")


def train(
    context: typer.Context,
    tracks: Annotated[
        str,
        typer.Option(
            help="List of tracks to train on: one path, id:, isrc:, sha256: or artist: per line; - for stdin."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the run, new or empty; the model is in its model/.")],
    without: Annotated[
        Path | None, typer.Option(metavar="LIST", help="Tracks of --tracks to leave out: trains a gold for this list.")
    ] = None,
    model: Model = "tiny",
    revision: Revision = None,
    offline: Offline = False,
    backend: Family = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="First initialise the trainable weights at random.")
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the tracks; default: until they are memorised.")
    ] = None,
    option: MethodOptions = None,
    config: ConfigFile = None,
    catalog: Catalog = None,
    root: Roots = None,
    allow_missing: AllowMissing = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps at most; default: 10 000.")] = None,
    max_seconds: MaxSeconds = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; default: from the size of the weights.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Clips per step; default: 8.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Random seed; use another one for gold2.")] = 0,
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
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Fine-tune a base or a gold of your own on tracks.

    A base is trained until it has memorised the tracks of the list, a gold by the same command with --without, a
    second one with another --seed. `encore bench --preset finetuned` makes all three and compares methods on them. Exit
    code 4: the model is there, and has memorised too few of the tracks, or training did not lower their NLL.
    """
    if epochs is not None and steps is not None:
        raise UsageError("--epochs and --steps both set the length of the training", "give one of the two")

    from encore import distributed
    from encore.store.environment import keep_freed_memory
    from encore.store.model_name import backend_name
    from encore.unlearn.config import TrainConfig
    from encore.unlearn.training import Training

    with distributed.processes(device):
        settings = method_settings(context, Training.Options, option, RECIPE_FLAGS)
        if "-" in (tracks, str(without)) and distributed.size() > 1:
            raise UsageError("a list in - reads one stream, and there are several processes", "write it to a file")
        keep_freed_memory()
        request = TrainConfig(
            tracks=tracks if tracks == "-" else Path(tracks), out=out, without=without, model=model, revision=revision,
            offline=offline, backend=backend_name(model, backend), catalog=catalog, roots=tuple(root or ()),
            allow_missing=allow_missing, seed=seed, device=device, precision=precision, resume=resume, fsdp=fsdp,
            adapter=adapter, lora_rank=lora_rank, lora_alpha=lora_alpha, lora_layers=lora_layers,
            keep_adapter=keep_adapter, checkpoint_activations=checkpoint_activations,
            weights=weights, optimizer_states=optimizer_states,
        )  # fmt: skip
        _train(request, Training(settings.options), {**origins(context), **settings.origin}, json=json)


def _train(request: TrainConfig, recipe: Training, origin: dict[str, Any], *, json: bool) -> None:
    from encore.cli.progress import reporting
    from encore.unlearn import train as runs

    with reporting() as reporter:
        prepared = runs.prepare(request, recipe, runs.choose(request, reporter), reporter)
    for note in prepared.notes:
        console.note(note)
    left_out = f", leave {len(prepared.left_out)} out" if prepared.left_out else ""
    console.note(f"train on {counted(len(prepared.trained), 'track')}{left_out}")
    try:
        with reporting() as reporter:
            run = runs.train(prepared, origin, reporter)
    except Interrupted as signal:
        console.note(f"stopped by {signal.name}; continue with the same command and --resume")
        raise
    if json:
        console.data_json({**run, "run": str(request.out)})
    else:
        _show(run, request.out)
    runs.check_memorised(run)


def _show(run: dict[str, Any], out: Path) -> None:
    from encore.unlearn.checks import loss_name

    outcome = run["outcome"]
    name = loss_name(run["unit"])
    sets = {"trained": "trained on", "left_out": "left out"}
    numbers = [f"{name} before", f"{name} after", "right tokens"]
    console.table(
        ["track", "set", *numbers],
        [
            (track, label, *(_number(row[key]) for key in ("nll_before", "nll_after", "right_tokens")))
            for part, label in sets.items()
            if part in outcome
            for track, row in outcome[part]["per_track"].items()
        ],
        right=numbers,
    )
    for option, choice in outcome["chosen"].items():
        console.note(f"{option} chosen: {choice}")
    for part, label in sets.items():
        if figures := outcome.get(part):
            of = f"{figures['measured']} of {run['tracks'][part]} tracks {label}"
            share = figures["verbatim"]
            verbatim = "" if share is None else f", {share:.0%} generated verbatim from the caption and 1 s"
            console.note(f"{of}: {name} {figures['nll_before']:.3f} -> {figures['nll_after']:.3f}{verbatim}")
    console.note(
        f"{counted(outcome['steps'], 'step')} in {run['timings']['train']:.0f} s; the model is in {out / 'model'}"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
