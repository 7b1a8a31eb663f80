"""`encore eval`: what a run forgot and what it kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encore.cli import console
from encore.cli.config import MAX_SEED, Device, Json, Offline, listed
from encore.errors import UsageError

if TYPE_CHECKING:
    from encore.api import Result, Role

ROLES = ("base", "unlearned", "gold", "gold2", "control", "none")


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="Folder of a complete run.")] = None,
    model: Annotated[str | None, typer.Option(help="Instead of a run: the model to measure.")] = None,
    tracks: Annotated[str | None, typer.Option(help="With --model: list of tracks it should have forgotten.")] = None,
    base: Annotated[str | None, typer.Option(help="With --model: the base model.")] = None,
    gold: Annotated[str | None, typer.Option(help="A model trained without those tracks.")] = None,
    gold2: Annotated[
        str | None,
        typer.Option(help="A second gold, of another seed: its distance to gold is the variation between seeds."),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="With --model: the model family; default: its run's, else musicgen.")
    ] = None,
    catalog: Annotated[
        Path | None, typer.Option(help="With --model: catalogue for id: lines, retain and holdout.")
    ] = None,
    retain: Annotated[str | None, typer.Option(help="With --model: list of tracks to keep.")] = None,
    holdout: Annotated[Path | None, typer.Option(help="With --model: list of held-out tracks.")] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option(
            help="Further folder that listed files may be in, or that a run's tracks or shards were moved to; repeat "
            "for more."
        ),
    ] = None,
    skip_unreadable: Annotated[
        bool | None,
        typer.Option(
            "--skip-unreadable", help="With --model: continue without retain and holdout tracks that can't be read."
        ),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Names, with commas between; default: the fast ones. See `encore metrics`.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="All metrics, also attacks and music similarity: about four times as long.")
    ] = False,
    embedder: Annotated[
        list[str] | None,
        typer.Option(help="Audio embedders of fad, clap_score and the like: NAME, or NAME=WEIGHTS; commas or repeat."),
    ] = None,
    samples_per_caption: Annotated[
        int,
        typer.Option(min=1, help="Generations per caption; FAD needs twice as many as its embedder has dimensions."),
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Where metrics.json, report and samples go; default: the run's folder.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of resampling and of generations.")] = 0,
    device: Device = "auto",
    offline: Offline = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also report figures known to be mostly bias at this size.")
    ] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Compute everything again, and store nothing.")] = False,
    json: Json = False,
) -> None:
    """Measure what a run forgot and what it kept: writes metrics.json, a report and samples to listen to."""
    only_model = {
        "tracks": tracks, "base": base, "backend": backend, "catalog": catalog, "retain": retain, "holdout": holdout,
        "skip-unreadable": skip_unreadable,
    }  # fmt: skip
    if (run is None) == (model is None):
        raise UsageError("give either a run folder, or --model with --tracks", "for example: encore eval runs/demo")
    if model is not None and tracks is None:
        raise UsageError("--model needs --tracks: which tracks should it have forgotten?")
    if run is not None and any(value is not None for value in only_model.values()):
        given = ", ".join(f"--{name}" for name, value in only_model.items() if value is not None)
        raise UsageError(f"{given} can't be set for a run: its request.json has them", "leave it out, or give --model")
    if gold2 and not gold:
        raise UsageError("--gold2 is compared with --gold, which is missing")
    if full and metrics is not None:
        raise UsageError("--full means all metrics, and --metrics names some", "give one of the two")
    names = listed(metrics) if metrics is not None else None
    embedders = ",".join(embedder or ())
    _check_names(names, embedders)

    from encore import distributed
    from encore.cli.progress import reporting
    from encore.cli.tracks import note_sets, show_tracks
    from encore.evaluate.inputs import from_flags, from_run
    from encore.evaluate.measure import check_failures
    from encore.evaluate.run import EvalConfig, evaluate_inputs
    from encore.store.environment import keep_freed_memory
    from encore.store.metrics_json import metrics_json
    from encore.store.model_name import absolute_folder, backend_name

    keep_freed_memory()
    golds: dict[Role, str] = {}
    if gold:
        golds["gold"] = absolute_folder(gold)
    if gold2:
        golds["gold2"] = absolute_folder(gold2)
    config = EvalConfig(
        tuple(names) if names is not None else None,
        full,
        embedders,
        seed,
        force,
        golds,
        not no_cache,
        samples_per_caption,
    )
    with distributed.processes(device):
        with reporting() as reporter, distributed.first_rank_first():  # the others find the codes in the cache
            if run is not None:
                out = out or run
                subject = from_run(
                    run, golds=golds, roots=root or (), seed=seed, device=device, offline=offline, reporter=reporter
                )
            else:
                assert model is not None
                assert tracks is not None
                others: dict[Role, str] = {**({"base": base} if base else {}), **golds}
                subject = from_flags(
                    model, tracks, others=others, backend=backend_name(model, backend), catalog=catalog,
                    retain=retain, holdout=holdout, roots=root or (), skip_unreadable=bool(skip_unreadable),
                    device=device, offline=offline, seed=seed, reporter=reporter,
                )  # fmt: skip
        if not json:
            show_tracks(subject.encoded["forget"])
            note_sets(subject.encoded)
        with reporting() as reporter:
            results = evaluate_inputs(subject, config, out=out, run=run, offline=offline, reporter=reporter)
        if json:
            console.data_json(metrics_json(results))
        else:
            _show(results, out)
            if run is not None:
                console.note(f"to read and to listen to: {(out or run) / 'report.html'}")
        check_failures(results)


def _check_names(metrics: Sequence[str] | None, embedder: str) -> None:
    """Report a misspelt name at once, not after the models are loaded."""
    from encore import plugins

    if metrics == []:
        raise UsageError("--metrics names no metric", "encore metrics lists them")
    for name in metrics or ():
        plugins.metrics().get(name)
    if embedder:
        from encore.evaluate.embedder_choice import parsed

        parsed(embedder)


def _show(results: Sequence[Result], out: Path | None) -> None:
    from encore.results.findings import findings
    from encore.results.targets import summary

    lines = [line for line in summary(results) if any(row.value is not None for row in line.figures.values())]
    roles = [role for role in ROLES if any(role in line.figures for line in lines)]
    rows = [
        (
            line.label,
            *(_figure(line.figures.get(role)) for role in roles),
            line.target,
            {True: "yes", False: "NO", None: ""}[line.met],
        )
        for line in lines
    ]
    if rows:
        console.table(["figure", *roles, "target", "met"], rows, right=roles)
    for finding in findings(results):
        console.data(f"{finding.level}: {finding.text}")
    if out is not None:
        console.note(f"all figures, with intervals and every track: {out / 'metrics.json'}")


def _figure(row: Result | None) -> str:
    from encore.report.tables import of_tracks

    if row is None or row.value is None:
        return ""
    if of_tracks(row):
        return f"{round(row.value * row.n)}/{row.n}"
    figure = f"{row.value:.3g}" if row.value < 10 else f"{row.value:.1f}"
    bias = row.details.get("bias")
    return f"{figure} (bias {bias:.2g})" if isinstance(bias, float) else figure
