"""One cell of a bench: forget, then measure; what is there already is not done again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from encore.bench.plan import Cell, Plan, is_measured, read_plan, refuse_other_cell, selected
from encore.errors import UsageError
from encore.runs.evaluate_run import Asked, evaluate_run, evaluate_subject
from encore.runs.forget import Request, forget, prepare
from encore.runs.open_run import subject_of
from encore.runs.reporter import Reporter
from encore.runs.select import Tracks

EACH = Asked(metrics=("nll", "verbatim"))  # how the run of one request among several is measured


def run_cell(out: Path, name: str, reporter: Reporter) -> Cell:
    """Do what is left of the cell `name` of the bench in folder `out`.

    Raises:
        UsageError: the bench has no such cell, or the run in its place is another.
        EncoreError: see `encore.runs.forget.forget` and `encore.runs.evaluate_run.evaluate_run`.
    """
    plan = read_plan(out)
    cell = next((cell for cell in plan.cells if cell.name == name), None)
    if cell is None:
        raise UsageError(f"the bench in {out} has no cell {name!r}", f"its first is {plan.cells[0].name}")
    tracks = selected(plan, out)
    if cell.requests > 1:
        _in_requests(plan, cell, out, tracks, reporter)
        return cell
    request, asked = plan.request(cell, out), plan.asked(tracks.forget)
    _forget(plan, cell, request, tracks, reporter)
    refuse_other_cell(plan, cell, request.out, tracks)
    if not is_measured(request.out, asked):
        evaluate_run(request.out, asked, device=plan.device, offline=plan.offline, reporter=reporter)
    return cell


def _forget(plan: Plan, cell: Cell, request: Request, tracks: Tracks, reporter: Reporter) -> None:
    if (request.out / "run.json").exists():
        return
    request = replace(request, resume=(request.out / "request.json").exists())
    method = plan.method(cell.method)
    origins = {item.partition("=")[0]: "cli" for item in plan.methods[cell.method]}
    forget(prepare(request, method, reporter, tracks=tracks), origins, reporter)


# --------------------------------------------------------------------------------------------------- several requests


def _in_requests(plan: Plan, cell: Cell, out: Path, tracks: Tracks, reporter: Reporter) -> None:
    """Send the tracks in several requests: each run begins with the model that the one before it left.

    Every run is measured on its own tracks when it is done, and the last model on all tracks at the end.
    """
    whole, asked = plan.request(cell, out), plan.asked(tracks.forget)
    model = plan.model
    for number, part in enumerate(parts(tracks, cell.requests, from_catalogue=plan.retain is None), 1):
        request = replace(
            whole, model=model, revision=plan.revision if number == 1 else None, out=whole.out / str(number)
        )
        _forget(plan, cell, request, part, reporter)
        if not is_measured(request.out, EACH):
            evaluate_run(request.out, EACH, device=plan.device, offline=plan.offline, reporter=reporter)
        model = str(request.out)
    if not is_measured(whole.out, asked):
        subject = subject_of(
            model, tracks, others={"base": plan.model, **asked.golds}, backend=plan.backend, device=plan.device,
            offline=plan.offline, seed=cell.seed, reporter=reporter,
        )  # fmt: skip
        evaluate_subject(subject, asked, out=whole.out, offline=plan.offline, reporter=reporter)


def parts(tracks: Tracks, requests: int, *, from_catalogue: bool) -> Sequence[Tracks]:
    """The tracks in `requests` pieces of about the same size, in the order of the list.

    What was forgotten is never trained on again. What is yet to be asked for is kept until then, where retain is the
    catalogue less the list, as it would be if nobody knew of it.

    Raises:
        UsageError: there are fewer tracks than requests, or the model is to play retain itself.
    """
    count = len(tracks.forget)
    if not 1 <= requests <= count:
        raise UsageError(f"{count} tracks can't be sent in {requests} requests", "choose fewer --requests")
    ends = [count * number // requests for number in range(requests + 1)]
    return [
        replace(
            tracks, forget=tracks.forget[begin:end],
            retain=(*tracks.retain, *tracks.forget[end:]) if from_catalogue else tracks.retain,
        )
        for begin, end in pairwise(ends)
    ]  # fmt: skip
