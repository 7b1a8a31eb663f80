"""`encore bench`: methods side by side."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encore.cli import console
from encore.cli.config import Device, Family, Offline, Revision, Roots, listed
from encore.errors import EncoreError, Interrupted, PluginError, UsageError
from encore.text import counted

if TYPE_CHECKING:
    from encore.compare.leaderboard import Leaderboard
    from encore.compare.matrix import MatrixLine
    from encore.compare.plan import Plan, Trial
    from encore.compare.sequential import RequestLine
    from encore.data.splits import Tracks

LAUNCHERS = ("local", "ray", "slurm")
SEQUENTIAL = (1, 2, 4)  # requests that the tracks come in


def bench(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the bench; the same command continues it.")] = Path("runs/bench"),
    methods: Annotated[
        str | None,
        typer.Option(help="Names, with commas between; NAME@VARIANT is the same with other options. Default: all."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=10_000, help="Runs per method, with seeds 0, 1, …")] = 3,
    preset: Annotated[
        str | None,
        typer.Option(
            help="`no-encore`: the experiment of arXiv 2509.06277. `finetuned`: first trains base, and golds of each "
            "list, from --model. Other flags win over it."
        ),
    ] = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Also unlearn the list as 2 and as 4 consecutive requests.")
    ] = False,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--option",
            metavar="METHOD.KEY=VALUE",
            help="Option of a method; train.KEY=VALUE: of the training of `--preset finetuned`.",
        ),
    ] = None,
    tracks: Annotated[
        str | None, typer.Option(help="List of tracks to forget; default: the embedded catalogue's forget split.")
    ] = None,
    forget_sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="Forget lists of these sizes, sampled from --tracks, the larger ones also from retain; 1 gives three.",
        ),
    ] = None,
    listed_as: Annotated[
        list[str] | None,
        typer.Option("--list", metavar="NAME=FILE", help="Another forget list; replaces a sampled one of its name."),
    ] = None,
    model: Annotated[str, typer.Option(help="`tiny` (embedded), a run or model folder, or a hub name.")] = "tiny",
    revision: Revision = None,
    backend: Family = None,
    catalog: Annotated[Path | None, typer.Option(help="Catalogue for id: lines, retain and holdout.")] = None,
    retain: Annotated[str | None, typer.Option(help="List of tracks to keep, or `self`.")] = None,
    holdout: Annotated[Path | None, typer.Option(help="List of held-out tracks.")] = None,
    root: Roots = None,
    gold: Annotated[
        list[str] | None,
        typer.Option(metavar="[LIST=]MODEL", help="A model trained without the tracks, or a list's."),
    ] = None,
    gold2: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LIST=]MODEL",
            help="A second gold, of another seed: its distance to gold is the variation between seeds.",
        ),
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="Names, with commas between; default: the fast ones.")] = None,
    full: Annotated[bool, typer.Option("--full", help="All metrics.")] = False,
    embedder: Annotated[
        str | None, typer.Option(help="As `encore eval` takes them; default: what fits the model.")
    ] = None,
    samples_per_caption: Annotated[
        int | None, typer.Option(min=1, help="Generations per caption; default: 1, or the preset's.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Trials to run at once; default: 1, with all cores; on a cluster, as many as fit."),
    ] = None,
    launcher: Annotated[
        str, typer.Option(help="What runs the trials: local processes, tasks of a Ray cluster, or Slurm array scripts.")
    ] = "local",
    resource: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY[=VALUE]",
            help="What a trial needs: num_cpus=4 or num_gpus=1 of Ray, any sbatch option of Slurm; repeat for more.",
        ),
    ] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    offline: Offline = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also report figures known to be mostly bias at this size.")
    ] = False,
    trial: Annotated[
        str | None, typer.Option(metavar="METHOD/seed-N", help="Run only this trial of an existing bench.")
    ] = None,
    meta: Annotated[
        bool,
        typer.Option(
            "--meta",
            help="Only test an existing bench's metrics, on models known to be trained with or without the tracks.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the leaderboard as JSON.")] = False,
) -> None:
    """Compare methods over seeds, and write a leaderboard; completed trials are kept."""
    if meta:
        _meta(context, out, _names(metrics, "--metrics"), json)
        return
    if trial is not None:
        _one(out, trial)
        return
    from encore import assets
    from encore.compare.finetuned import finetuned, with_golds
    from encore.compare.forget_lists import list_names
    from encore.compare.leaderboard import leaderboard
    from encore.compare.matrix import METRICS_READ, matrix_lines
    from encore.compare.plan import (
        PLAN,
        Plan,
        changed_measurement,
        check_plan,
        kept_trials,
        read_plan,
        unfinished,
        write_plan,
    )
    from encore.compare.presets import preset as find
    from encore.compare.sequential import request_lines
    from encore.compare.tables import write_leaderboard
    from encore.store.model_name import absolute_folder, backend_name
    from encore.store.run_folder import locked

    resources = _resources(launcher, resource or [])
    defaults = find(preset) if preset else None
    sizes, lists = _sizes(forget_sizes), _lists(listed_as or [])
    golds = _golds(gold or [], gold2 or [], [*list_names(sizes), *lists])
    if full and metrics is not None:
        raise UsageError("--full means all metrics, and --metrics names some", "give one of the two")
    embedded = assets.model_folder(model) is not None
    names = _names(methods, "--methods") or (defaults.methods if defaults else _installed(backend_name(model, backend)))
    of_lists = METRICS_READ if sizes or lists else ()
    by_default = tuple(dict.fromkeys((*(defaults.metrics if defaults else ()), *of_lists))) or None
    measured = _names(metrics, "--metrics") or (by_default if not full else None)
    chosen = embedder or (defaults.embedder if defaults and not embedded else None)
    preset_options = (
        [item for item in defaults.options if item.partition(".")[0] in names] if defaults and not embedded else []
    )
    finetune = defaults is not None and defaults.finetune
    recipe = [item.removeprefix("train.") for item in option or () if finetune and item.startswith("train.")]
    method_options = [item for item in option or () if not (finetune and item.startswith("train."))]
    plan = Plan(
        methods=_options(names, [*preset_options, *method_options]),
        seeds=tuple(range(seeds)), requests=SEQUENTIAL if sequential else (1,), tracks=_absolute(tracks),
        forget_sizes=sizes, lists=lists, model=absolute_folder(model), revision=revision,
        backend=backend_name(model, backend), catalog=_absolute(catalog),
        retain=retain if retain == "self" else _absolute(retain), holdout=_absolute(holdout),
        roots=tuple(str(path.resolve()) for path in root or ()), device=device, precision=precision, offline=offline,
        golds=golds.get("", {}), list_golds={name: models for name, models in golds.items() if name},
        metrics=measured, embedder=chosen or "", full=full, force=force,
        samples_per_caption=samples_per_caption or (defaults.samples_per_caption if defaults else 1),
    )  # fmt: skip
    out = out.resolve()
    if finetune:
        plan = finetuned(plan, out, recipe)
    local = launcher == "local"
    chosen_tracks = check_plan(plan, out, local=local)
    if finetune:
        plan = with_golds(plan, out, chosen_tracks)
    with locked(out), _told_if_stopped():
        before = read_plan(out) if (out / PLAN).exists() else None
        changes = changed_measurement(plan, before) if before else []
        if earlier := (kept_trials(plan, before, out) if before else []):
            named = ", ".join(earlier[:3]) + (", …" if len(earlier) > 3 else "")
            console.note(f"{counted(len(earlier), 'earlier trial')} kept, and not in this leaderboard: {named}")
        write_plan(plan, out)
        if finetune and not _train(plan, out, chosen_tracks, jobs, launcher, resources):
            return
        pending = list(unfinished(plan, out, chosen_tracks))
        of, remeasured = len(plan.trials), sum((out / trial.name / "run.json").exists() for trial in pending)
        console.note(f"trials: {of}, of {counted(len(plan.methods), 'method')}; done: {of - len(pending)}")
        if remeasured:
            why = "; ".join(changes) or "the models or the code that measures are not those that were measured"
            console.note(f"{remeasured} more are only measured again: {why}")
        if launcher == "slurm":
            failed = _write_scripts(pending, out, jobs, resources)
            if len(pending) == of and not failed:
                return
        else:
            failed = _run(pending, out, jobs, launcher, resources, device)
        board, requests = leaderboard(plan, out, failed), request_lines(plan, out, failed)
        matrix = matrix_lines(plan, out, chosen_tracks, failed)
        written = write_leaderboard(out, board, requests, matrix)
    _show(board, requests, matrix, written, json)
    if failed:
        first, why = next(iter(failed.items()))
        raise EncoreError(
            f"{len(failed)} of {of} trials failed, the first is {first.name}: {why}",
            f"their logs are in {out / 'logs'}; run the same command to try again",
        )


@contextmanager
def _told_if_stopped() -> Iterator[None]:
    """Say how to continue when a signal stops the bench."""
    try:
        yield
    except Interrupted as signal:
        console.note(f"stopped by {signal.name}; the same command continues")
        raise


def _run(
    trials: Sequence[Trial], out: Path, jobs: int | None, launcher: str, resources: Mapping[str, str], device: str
) -> dict[Trial, str]:
    """Run the trials here or on a Ray cluster; returns the error of each that failed."""
    from encore.compare.plan import PLAN
    from encore.compare.ray_trials import ray_cluster
    from encore.compare.scheduler import run_trials

    def progress(trial: Trial, status: str) -> None:
        console.note(f"{trial.name}: {status}")

    if launcher == "local" or not trials:
        return run_trials(trials, out, jobs=jobs or 1, progress=progress)

    def queued(trial: Trial, status: str) -> None:
        progress(trial, "queued" if status == "started" else status)

    with ray_cluster(out / PLAN, resources=resources, device=device, note=console.note) as start:
        return run_trials(trials, out, jobs=jobs or len(trials), start=start, progress=queued)


def _write_scripts(
    trials: Sequence[Trial], out: Path, jobs: int | None, resources: Mapping[str, str]
) -> dict[Trial, str]:
    """Write the Slurm scripts of the trials that neither run nor will run; returns the last error of those with one."""
    from encore.compare.plan import PLAN
    from encore.compare.scheduler import last_error, log_file
    from encore.compare.slurm import ENDED, INTERRUPTED, is_running, last_states, queue, write_scripts

    queued = queue(out)
    states = {trial: queued[trial.name][0] for trial in trials if trial.name in queued}
    states |= last_states([trial for trial in trials if trial not in states], out)
    states |= {
        trial: "RUNNING" for trial in trials if states.get(trial, "ENDED") != "RUNNING" and is_running(trial, out)
    }
    waiting = [trial for trial in trials if trial not in states or states[trial] in ENDED]
    for state in dict.fromkeys(states.values()):
        names = ", ".join(trial.name for trial in trials if states.get(trial) == state)
        if state in INTERRUPTED:
            console.note(f"interrupted ({state}), and to be submitted again: {names}")
        elif state not in ENDED:
            console.note(f"{'running now' if state == 'RUNNING' else f'in the queue ({state})'}: {names}")
    keep = {script for _, script in queued.values()}
    scripts = write_scripts(waiting, out / PLAN, jobs=jobs, resources=resources, keep=keep)
    for script in scripts:
        console.note(f"submit: {shlex.join(['sbatch', str(script)])}")
    if scripts:
        console.note("all nodes must share the bench's folder; when the tasks have ended, run this command again")
    errors: dict[Trial, str] = {}
    for trial in waiting:
        state = states.get(trial, "")
        if state in ("", "FAILED"):
            errors[trial] = last_error(log_file(trial.name, out)) or ("its task failed" if state else "")
        elif state not in (*INTERRUPTED, "COMPLETED"):
            errors[trial] = f"its task ended as {state}"
    return {trial: error for trial, error in errors.items() if error}


def _resources(launcher: str, given: Sequence[str]) -> dict[str, str]:
    """ "partition=gpu" """
    if launcher not in LAUNCHERS:
        raise UsageError(f"there is no launcher {launcher!r}", f"one of {', '.join(LAUNCHERS)}")
    if given and launcher == "local":
        raise UsageError(
            "--resource is for --launcher ray or slurm", "trials on this machine share its cores: --jobs N"
        )
    resources: dict[str, str] = {}
    for item in given:
        key, sign, value = item.partition("=")
        if not key or key in resources or (launcher == "ray" and not sign):
            why = "is given twice" if key in resources else "is not KEY=VALUE"
            raise UsageError(f"the resource {item!r} {why}", "as in: --resource num_gpus=1, --resource partition=gpu")
        resources[key] = value
    if launcher != "local":
        from encore.compare import ray_trials, slurm

        (ray_trials if launcher == "ray" else slurm).checked(resources)
    return resources


def _one(out: Path, name: str) -> None:
    from encore.cli.progress import reporting
    from encore.compare.trial import run_trial
    from encore.store.environment import keep_freed_memory

    keep_freed_memory()
    with reporting() as reporter:
        run_trial(out.resolve(), name, reporter)


def _meta(context: typer.Context, out: Path, metrics: Sequence[str] | None, json: bool) -> None:
    """Try the metrics on known models, and order the leaderboard by what came of it."""
    from encore.cli.config import origins
    from encore.cli.progress import reporting
    from encore.compare.leaderboard import failures, leaderboard
    from encore.compare.meta import meta_evaluate
    from encore.compare.plan import read_plan
    from encore.compare.sequential import request_lines
    from encore.compare.tables import trust_table, write_leaderboard
    from encore.store.environment import keep_freed_memory
    from encore.store.run_folder import locked

    given = [name for name, origin in origins(context).items() if origin == "cli"]
    flags = {parameter.name: max(parameter.opts, key=len) for parameter in context.command.params}
    if other := [name for name in given if name not in ("out", "metrics", "meta", "json", "quiet", "verbose")]:
        raise UsageError(
            f"--meta takes the bench in --out as it is, without {flags[other[0]]}",
            "give --out and, for some metrics only, --metrics",
        )
    out = out.resolve()
    plan = read_plan(out)
    keep_freed_memory()
    failure: PluginError | None = None
    with locked(out):
        with reporting() as reporter:
            try:
                meta_evaluate(plan, out, metrics=metrics, reporter=reporter)
            except PluginError as error:  # of some metrics: what the others found is in meta.json
                failure = error
        failed = failures(plan, out)
        board, requests = leaderboard(plan, out, failed), request_lines(plan, out, failed)
        written = write_leaderboard(out, board, requests)
    _show(board, requests, (), written, json)
    if not json:
        console.table(*trust_table(board.trust))
    if failure is not None:
        raise failure


def _train(
    plan: Plan, out: Path, tracks: Tracks, jobs: int | None, launcher: str, resources: Mapping[str, str]
) -> bool:
    """Train base and golds, if they are not there, by the launcher; returns whether they are there now."""
    from encore.compare.finetuned import check_models, model_trials, untrained

    left = untrained(plan, out, tracks)
    console.note(f"models to train: {len(left)} of {len(model_trials(plan))}")
    if launcher == "slurm" and left:
        failed = _write_scripts(left, out, jobs, resources)
    else:
        failed = _run(left, out, jobs, launcher, resources, plan.device)
    if failed:
        first, why = next(iter(failed.items()))
        raise EncoreError(
            f"{first.name} was not trained: {why}", "its log is in logs; run the same command to continue"
        )
    if launcher == "slurm" and left:
        return False
    for note in check_models(plan, out):
        console.warn(note)
    return True


def _names(given: str | None, flag: str) -> tuple[str, ...] | None:
    if given is None:
        return None
    names = tuple(listed(given))
    if not names:
        raise UsageError(f"{flag} names nothing", f"`encore {flag[2:]}` lists them")
    return names


def _installed(backend: str) -> list[str]:
    """All methods that are installed and run on a backend's models; the others are noted."""
    from encore import plugins

    names, registry, family = [], plugins.methods(), plugins.backends().resolve(backend)
    for name in registry.names:
        try:
            why = family.unmet(registry.resolve(name).spec.needs)
        except EncoreError as error:
            why = error.message
        if why:
            console.note(f"{name} is left out: {why}")
        else:
            names.append(name)
    return names


def _options(methods: Sequence[str], given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """ "method.key=value" to the method it is for."""
    options: dict[str, tuple[str, ...]] = dict.fromkeys(methods, ())
    for item in given:
        method, dot, rest = item.partition(".")
        if not dot or "=" not in rest or method not in options:
            raise UsageError(
                f"the option {item!r} is not METHOD.KEY=VALUE of a method of this bench",
                f"as in: -o {next(iter(methods))}.KEY=VALUE",
            )
        options[method] = (*options[method], rest)
    return options


def _sizes(given: str | None) -> tuple[int, ...]:
    """ "1,3,8" """
    sizes = listed(given or "")
    if given is not None and (not sizes or not all(item.isdecimal() and int(item) for item in sizes)):
        raise UsageError(f"--forget-sizes {given!r} is not a list of sizes", "as in: --forget-sizes 1,3,8,24")
    return tuple(sorted({int(item) for item in sizes}))


def _lists(given: Sequence[str]) -> dict[str, str]:
    """ "pop=pop.txt" """
    lists: dict[str, str] = {}
    for item in given:
        name, sign, path = item.partition("=")
        if not (name and sign and path) or name in lists:
            why = "is given twice" if name in lists else "is not NAME=FILE"
            raise UsageError(f"the list {item!r} {why}", "as in: --list pop=pop.txt")
        lists[name] = str(Path(path).resolve())
    return lists


def _golds(gold: Sequence[str], gold2: Sequence[str], lists: Sequence[str]) -> dict[str, dict[str, str]]:
    """Models by list ("" for all tracks) and role. "NAME=MODEL" is for a list, if there is one of that name."""
    from encore.store.model_name import absolute_folder

    golds: dict[str, dict[str, str]] = {}
    for role, given in (("gold", gold), ("gold2", gold2)):
        for item in given:
            name, sign, model = item.partition("=")
            if not sign or Path(item).exists():
                name, model = "", item
            elif name not in lists:
                raise UsageError(
                    f"there is no list {name!r} for --{role} {item}", f"lists: {', '.join(lists) or 'none'}"
                )
            if role in golds.setdefault(name, {}):
                raise UsageError(f"--{role} is given twice{f' for {name}' if name else ''}", "leave one of them out")
            golds[name][role] = absolute_folder(model)
    if lacking := [name for name, models in golds.items() if "gold" not in models]:
        of = f" of {lacking[0]}" if lacking[0] else ""
        raise UsageError(f"--gold2{of} is compared with --gold, which is missing", "give both, or leave --gold2 out")
    return golds


def _absolute(path: str | Path | None) -> str | None:
    return None if path is None else str(Path(path).resolve())


def _show(
    board: Leaderboard,
    requests: Sequence[RequestLine],
    matrix: Sequence[MatrixLine],
    written: Sequence[Path],
    json: bool,
) -> None:
    from encore.compare.tables import cells, header, matrix_table
    from encore.store.run_folder import read_json

    if json:
        console.data_json(read_json(next(path for path in written if path.suffix == ".json")))
        return
    if board.lines or not matrix:
        titles = header(board)
        console.table(titles, [cells(board, line) for line in (*board.references, *board.lines)], right=titles[2:])
    for method in dict.fromkeys(line.method for line in matrix):
        console.note(f"{method}: medians over seeds")
        console.table(*matrix_table([line for line in matrix if line.method == method]))
    if requests:
        rows: list[Mapping[str, object]] = [line.as_dict() for line in requests]
        console.table(list(rows[0]), [[_rounded(value) for value in row.values()] for row in rows])
    for note in board.notes:
        console.note(note)
    for path in written:
        console.note(str(path))


def _rounded(value: object) -> object:
    return f"{value:.2f}" if isinstance(value, float) else value
