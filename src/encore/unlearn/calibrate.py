"""`encore forget --calibrate`: rehearsals on decoys choose the settings before the run.

Decoys are retain tracks whose NLLs under the base model are close to those of the tracks to forget. A rehearsal forgets
them on a copy of the model, and measures everything that can be measured without gold. If a target is missed, the next
settings are tried. A rehearsal never trains on the tracks to forget.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from encore import distributed
from encore.api import Method
from encore.data.splits import SELF
from encore.errors import EncoreError, UsageError
from encore.files import finite
from encore.reporter import Reporter
from encore.store import schemas
from encore.store.run_folder import read_json
from encore.unlearn.config import ForgetConfig
from encore.unlearn.rehearsal import DECOY_SHARE, Rehearsal, RehearsalResult
from encore.unlearn.run import Prepared

# The options that set a learning rate or a length; a method has some of them.
SCALED = {"lr": "lr", "rate": "lr", "steps": "steps", "decay_steps": "steps"}
# Factors, in the order tried. Half the rate needs twice the steps to forget as deeply, and keeps the rest better.
LADDER: tuple[Mapping[str, float], ...] = ({}, {"lr": 0.5, "steps": 2.0}, {"lr": 2.0}, {"steps": 2.0})


def check_uncalibrated(prepared: Prepared) -> None:
    """Check that a rehearsal is possible: it needs retain tracks, and held-out tracks to compare with.

    Raises:
        UsageError: there are too few retain tracks, or no held-out ones.
    """
    if prepared.request.retain == SELF or len(prepared.retain) * DECOY_SHARE < 1:
        raise UsageError(
            f"--calibrate rehearses on tracks from retain, and there are too few: {len(prepared.retain)}",
            "name at least three with --retain LIST or --catalog FILE, or leave --calibrate out",
        )
    if not prepared.holdout:
        raise UsageError("--calibrate compares with held-out tracks, and there are none", "give --holdout LIST")


def calibrate(prepared: Prepared, reporter: Reporter | None = None, *, given: Collection[str] = ()) -> dict[str, Any]:
    """Rehearse until all targets are met or all settings are tried; then set the best settings in `prepared.method`.

    A calibration found in the run folder (`--resume`) is used as it is.

    Args:
        prepared: the run.
        reporter: receives a note per rehearsal.
        given: options that the user set, which keep their values.

    Returns:
        The record for `run.json`: the decoys (hashes of their files), every trial, and the chosen settings.

    Raises:
        UsageError: see `check_uncalibrated`.
        EncoreError: every rehearsal failed.
    """
    reporter = reporter or Reporter()
    check_uncalibrated(prepared)
    if (recorded := _recorded(prepared.request)) is not None:
        return recorded
    started = time.monotonic()
    rehearsal = Rehearsal(prepared, reporter)
    ladder = rungs(prepared.method, given)
    trials: list[RehearsalResult] = []
    failed: EncoreError | None = None
    for number, changes in enumerate(ladder, 1):
        method = with_options(prepared.method, changes)
        try:
            trials.append(distributed.first(rehearsal.trial(method, changes)))
        except EncoreError as error:  # for example a rate at which the loss is not finite: try the next
            failed = error
            reporter.note(f"rehearsal {number} of at most {len(ladder)}: {error.message}")
            continue
        reporter.note(f"rehearsal {number} of at most {len(ladder)}: {trials[-1]}")
        if not trials[-1].missed:
            break
    if failed is not None and not trials:
        raise EncoreError(
            f"every rehearsal failed, the last one because {failed.message}",
            "give another --lr, or leave --calibrate out; nothing was written",
        ) from failed
    best = min(trials, key=lambda trial: trial.rank)
    prepared.method = with_options(prepared.method, best.options)
    record = {
        "decoys": [decoy.track.sha256 for decoy in rehearsal.decoys], "tried": [trial.as_dict() for trial in trials],
        "chosen": best.options, "missed": best.missed, "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip
    return dict(finite(record))


def rungs(method: Method, given: Collection[str] = ()) -> list[dict[str, Any]]:
    """The settings to try: values of the scaled options that the method has.

    An option that is None (chosen by the method) can't be scaled, and is left out, and so are those that the user set.
    A given `lr` stands for `rate` too, and given `steps` for `decay_steps`.
    """
    fixed = {SCALED[name] for name in given if name in SCALED}
    options = {name: getattr(method.options, name, None) for name in SCALED if SCALED[name] not in fixed}
    numbers = {name: value for name, value in options.items() if isinstance(value, (int, float))}
    result: list[dict[str, Any]] = []
    for factors in LADDER:
        rung = {name: type(value)(value * factors.get(SCALED[name], 1)) for name, value in numbers.items()}
        result += [rung] if rung not in result else []
    return result


def with_options(method: Method, changes: Mapping[str, Any]) -> Method:
    """A new instance of the method with some options changed."""
    return type(method)(method.options.model_copy(update=dict(changes)))


def restored(request: ForgetConfig, method: Method) -> Method:
    """The method with the settings calibrated for the run to resume; unchanged where there is no such run."""
    recorded = _recorded(request)
    return with_options(method, recorded["chosen"]) if recorded is not None else method


def _recorded(request: ForgetConfig) -> dict[str, Any] | None:
    """The calibration of the run to resume; None where there is no such run.

    Raises:
        UsageError: the run was started without one.
    """
    file = request.out / "request.json"
    if not (request.calibrate and request.resume and file.exists()):
        return None
    calibration = read_json(file, schemas.Request).get("calibration")
    if calibration is None:
        raise UsageError(f"the run in {request.out} was started without --calibrate", "resume it without --calibrate")
    return dict(calibration)


def expected_seconds(prepared: Prepared, run_seconds: float, *, given: Collection[str] = ()) -> tuple[float, float]:
    """Expected duration of a calibration: the least (the first settings pass) and the most (all are tried).

    A rehearsal is taken to last as long as a run; measurements after it are not counted.

    Args:
        prepared: the run.
        run_seconds: expected duration of the run, from `encore.unlearn.estimate.estimate`.
        given: as in `calibrate`.

    Raises:
        UsageError: see `check_uncalibrated`.
    """
    check_uncalibrated(prepared)
    if _recorded(prepared.request) is not None:
        return 0.0, 0.0
    steps = [float(rung.get("steps", 1)) for rung in rungs(prepared.method, given)]
    return run_seconds, run_seconds * sum(steps) / steps[0]
