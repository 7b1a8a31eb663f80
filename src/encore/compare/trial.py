"""One cell of a bench: forget, then measure; what is there already is not done again."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from encore.compare.plan import Plan, Trial, check_other_cell, is_measured, of_list, read_plan, runs, selected, weights
from encore.data.splits import Tracks
from encore.errors import UsageError
from encore.evaluate.inputs import subject_of
from encore.evaluate.measure import check_failures
from encore.evaluate.run import EvalConfig, evaluate_run, evaluate_subject
from encore.reporter import Reporter
from encore.unlearn.config import ForgetConfig
from encore.unlearn.run import forget, prepare

EACH = EvalConfig(metrics=("nll", "verbatim"))  # how the run of one request among several is measured


def run_cell(out: Path, name: str, reporter: Reporter) -> Trial:
    """Do what is left of the cell `name` of the bench in folder `out`.

    Of several requests, each run begins with the model that the one before it left, and is measured on its own tracks
    when it is done; the last model is measured on all tracks at the end.

    Raises:
        UsageError: the bench has no such cell, or the run in its place is another.
        EncoreError: see `encore.unlearn.run.forget` and `encore.evaluate.run.evaluate_run`.
    """
    plan = read_plan(out)
    cell = next((cell for cell in plan.cells if cell.name == name), None)
    if cell is None:
        raise UsageError(f"the bench in {out} has no cell {name!r}", f"its first is {plan.cells[0].name}")
    whole = selected(plan, out)
    tracks = of_list(plan, out, cell.list, whole)
    request, asked = plan.request(cell, out), plan.asked(tracks.forget, cell.list, whole.forget)
    models = weights(plan, asked.golds, request.out)
    model, base = plan.model, models.get("base")
    for run, own in runs(plan, cell, out, tracks):
        _forget(plan, cell, replace(request, model=model, out=run), own, reporter)
        check_other_cell(plan, cell, run, own, base)
        if cell.requests > 1 and not is_measured(run, EACH, {}):
            check_failures(evaluate_run(run, EACH, device=plan.device, offline=plan.offline, reporter=reporter))
        model, base = str(run), None
        request = replace(request, revision=None)
    if is_measured(request.out, asked, models):
        return cell
    if cell.requests == 1:
        check_failures(evaluate_run(request.out, asked, device=plan.device, offline=plan.offline, reporter=reporter))
        return cell
    subject = subject_of(
        model, tracks, others={"base": plan.model, **asked.golds}, backend=plan.backend, revision=plan.revision,
        device=plan.device, offline=plan.offline, seed=asked.seed, reporter=reporter,
    )  # fmt: skip
    check_failures(evaluate_subject(subject, asked, out=request.out, offline=plan.offline, reporter=reporter))
    return cell


def _forget(plan: Plan, cell: Trial, request: ForgetConfig, tracks: Tracks, reporter: Reporter) -> None:
    if (request.out / "run.json").exists():
        return
    request = replace(request, resume=(request.out / "request.json").exists())
    method = plan.method(cell.method)
    given = {item.name for item in fields(ForgetConfig) if getattr(request, item.name) != item.default}
    options = {item.partition("=")[0] for item in plan.methods[cell.method]}
    forget(prepare(request, method, reporter, tracks=tracks), dict.fromkeys(given | options, "cli"), reporter)
