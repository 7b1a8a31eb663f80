"""`encore forget --calibrate`: a rehearsal on decoys chooses the settings before anything is forgotten.

Decoys are retain tracks that the base knows about as well as the tracks to forget. The method forgets them on a copy of
the model, and all is measured there that can be measured without gold. Where a target is missed the next settings are
tried. The tracks to forget themselves are trained on in no way, neither to forget nor to keep.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from encore.api import Method
from encore.data.splits import SELF
from encore.errors import EncoreError, UsageError
from encore.reporter import Reporter
from encore.store import schemas
from encore.store.run_folder import finite, read_json
from encore.unlearn.config import ForgetConfig
from encore.unlearn.rehearsal import DECOY_SHARE, Rehearsal, RehearsalResult
from encore.unlearn.run import Prepared

# The options that stand for a learning rate and for a length: a method has some of them.
SCALED = {"lr": "lr", "rate": "lr", "steps": "steps", "decay_steps": "steps"}
# Factors, one rung after another. Half the rate needs twice the steps to forget as deeply, and keeps the rest better.
LADDER: tuple[Mapping[str, float], ...] = ({}, {"lr": 0.5, "steps": 2.0}, {"lr": 2.0}, {"steps": 2.0})


def check_uncalibrated(prepared: Prepared) -> None:
    """A rehearsal takes tracks to keep, and judges by held-out ones.

    Raises:
        UsageError: there are too few retain tracks, or no held-out ones.
    """
    if prepared.request.retain == SELF or len(prepared.retain) * DECOY_SHARE < 1:
        raise UsageError(
            f"--calibrate rehearses on tracks from retain, and there are too few: {len(prepared.retain)}",
            "name at least three with --retain LIST or --catalog FILE, or leave --calibrate out",
        )
    if not prepared.holdout:
        raise UsageError("--calibrate judges by held-out tracks, and there are none", "give --holdout LIST")


def calibrate(prepared: Prepared, reporter: Reporter | None = None) -> dict[str, Any]:
    """Rehearse until all targets are met, or the ladder ends; the method of `prepared` then has the best settings.

    Where the run folder has a calibration already (`--resume`), that one is taken and nothing is rehearsed.

    Returns:
        What `run.json` keeps: the decoys (hashes of their files), all that was tried, and what was chosen.

    Raises:
        UsageError: see `check_uncalibrated`.
        EncoreError: every rehearsal failed.
    """
    reporter = reporter or Reporter()
    check_uncalibrated(prepared)
    if (found := _recorded(prepared.request)) is not None:
        return found
    started = time.monotonic()
    rehearsal = Rehearsal(prepared, reporter)
    ladder = rungs(prepared.method)
    trials: list[RehearsalResult] = []
    failed: EncoreError | None = None
    for number, changes in enumerate(ladder, 1):
        method = with_options(prepared.method, changes)
        try:
            trials.append(rehearsal.trial(method, changes))
        except EncoreError as error:  # a rate at which the loss is not finite is an answer too
            failed = error
            reporter.note(f"rehearsal {number} of at most {len(ladder)}: {error.message}")
            continue
        reporter.note(f"rehearsal {number} of at most {len(ladder)}: {trials[-1]}")
        if not trials[-1].missed:
            break
    if failed is not None and not trials:
        raise EncoreError(
            f"every rehearsal failed, the last one since {failed.message}",
            "give another --lr, or leave --calibrate out; nothing was written",
        ) from failed
    best = min(trials, key=lambda trial: trial.rank)
    prepared.method = with_options(prepared.method, best.options)
    record = {
        "decoys": [one.track.sha256 for one in rehearsal.decoys], "tried": [trial.as_dict() for trial in trials],
        "chosen": best.options, "missed": best.missed, "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip
    return dict(finite(record))


def rungs(method: Method) -> list[dict[str, Any]]:
    """The settings to try, each as what the options of the ladder are then; those a method lacks are left out.

    An option that has no number (None: the method finds it) can't be scaled, and stays.
    """
    given = {name: getattr(method.options, name, None) for name in SCALED}
    known = {name: value for name, value in given.items() if isinstance(value, (int, float))}
    found: list[dict[str, Any]] = []
    for factors in LADDER:
        rung = {name: type(value)(value * factors.get(SCALED[name], 1)) for name, value in known.items()}
        found += [rung] if rung not in found else []
    return found


def with_options(method: Method, changes: Mapping[str, Any]) -> Method:
    """A method like this one that has not run yet, with other values of some options."""
    return type(method)(method.options.model_copy(update=dict(changes)))


def begun(request: ForgetConfig, method: Method) -> Method:
    """The method as it was calibrated for the run that is to be resumed; as it is where there is no such run."""
    found = _recorded(request)
    return with_options(method, found["chosen"]) if found is not None else method


def _recorded(request: ForgetConfig) -> dict[str, Any] | None:
    """The calibration that a run to be resumed has already.

    Raises:
        UsageError: the run was begun without one.
    """
    file = request.out / "request.json"
    if not (request.calibrate and request.resume and file.exists()):
        return None
    found = read_json(file, schemas.Request).get("calibration")
    if found is None:
        raise UsageError(f"the run in {request.out} was begun without --calibrate", "resume it without --calibrate")
    return dict(found)


def expected_seconds(prepared: Prepared, a_run: float) -> tuple[float, float]:
    """What a calibration takes at least, where the first settings pass, and at most, where all are tried.

    A rehearsal is taken to be a run: what is measured after it is not counted.

    Args:
        a_run: seconds of the run itself, of `encore.unlearn.estimate.estimate`.

    Raises:
        UsageError: see `check_uncalibrated`.
    """
    check_uncalibrated(prepared)
    if _recorded(prepared.request) is not None:
        return 0.0, 0.0
    steps = [float(rung.get("steps", 1)) for rung in rungs(prepared.method)]
    return a_run, a_run * sum(steps) / steps[0]
