"""One trial of a bench: forget, then measure. Completed parts are skipped."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from encore.compare.finetuned import model_trials, train_model
from encore.compare.plan import (
    Plan,
    Trial,
    check_same_run,
    is_measured,
    list_tracks,
    model_hashes,
    plan_tracks,
    read_plan,
    runs,
)
from encore.data.splits import Tracks
from encore.errors import UsageError
from encore.evaluate.inputs import open_inputs
from encore.evaluate.measure import check_failures
from encore.evaluate.run import EvalConfig, evaluate_inputs, evaluate_run
from encore.reporter import Reporter
from encore.unlearn.config import ForgetConfig
from encore.unlearn.run import forget, prepare

EACH = EvalConfig(metrics=("nll", "verbatim"))  # for the run of each of several requests


def run_trial(out: Path, name: str, reporter: Reporter) -> Trial:
    """Complete the trial `name` of the bench in folder `out`.

    With several requests, each run starts from the model of the previous one and is measured on its own tracks; the
    last model is measured on all tracks at the end. A trial of `encore.compare.finetuned` trains a model.

    Raises:
        UsageError: the bench has no such trial, or its folder has another run.
        EncoreError: see `encore.unlearn.run.forget` and `encore.evaluate.run.evaluate_run`.
    """
    plan = read_plan(out)
    models = model_trials(plan)
    trial = next((trial for trial in (*plan.trials, *models) if trial.name == name), None)
    if trial is None:
        raise UsageError(f"the bench in {out} has no trial {name!r}", f"its first is {plan.trials[0].name}")
    whole = plan_tracks(plan, out)
    if trial in models:
        train_model(plan, trial, out, whole, reporter)
        return trial
    tracks = list_tracks(plan, out, trial.list, whole)
    request, config = plan.request(trial, out), plan.eval_config(tracks.forget, trial.list, whole.forget)
    hashes = model_hashes(plan, config.golds, request.out)
    model, base = plan.model, hashes.get("base")
    for run, run_tracks in runs(plan, trial, out, tracks):
        _forget(plan, trial, replace(request, model=model, out=run), run_tracks, reporter)
        check_same_run(plan, trial, run, run_tracks, base)
        if trial.requests > 1 and not is_measured(run, EACH, {}):
            check_failures(evaluate_run(run, EACH, device=plan.device, offline=plan.offline, reporter=reporter))
        model, base = str(run), None
        request = replace(request, revision=None)
    if is_measured(request.out, config, hashes):
        return trial
    if trial.requests == 1:
        check_failures(evaluate_run(request.out, config, device=plan.device, offline=plan.offline, reporter=reporter))
        return trial
    inputs = open_inputs(
        model, tracks, others={"base": plan.model, **config.golds}, backend=plan.backend, revision=plan.revision,
        device=plan.device, offline=plan.offline, seed=config.seed, reporter=reporter,
    )  # fmt: skip
    check_failures(evaluate_inputs(inputs, config, out=request.out, offline=plan.offline, reporter=reporter))
    return trial


def _forget(plan: Plan, trial: Trial, request: ForgetConfig, tracks: Tracks, reporter: Reporter) -> None:
    if (request.out / "run.json").exists():
        return
    request = replace(request, resume=(request.out / "request.json").exists())
    method = plan.method(trial.method)
    changed = {item.name for item in fields(ForgetConfig) if getattr(request, item.name) != item.default}
    options = {item.partition("=")[0] for item in plan.methods[trial.method]}
    forget(prepare(request, method, reporter, tracks=tracks), dict.fromkeys(changed | options, "cli"), reporter)
