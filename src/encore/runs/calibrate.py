"""`encore forget --calibrate`: a rehearsal on decoys chooses the settings before anything is forgotten.

Decoys are retain tracks that the base knows about as well as the tracks to forget. The method forgets them on a copy of
the model, and all is measured there that can be measured without gold. Where a target is missed the next settings are
tried. The tracks to forget themselves are trained on in no way, neither to forget nor to keep.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from encore.api import Backend, Clip, ClipSet, Method, Result
from encore.errors import EncoreError, UsageError
from encore.metrics.relearn import retrained, spread
from encore.metrics.verbatim import MATCH
from encore.runs.data import Heard
from encore.runs.engine import Clips, Engine
from encore.runs.evaluation import SharedEvaluation
from encore.runs.forget import Prepared, Request, clips_of
from encore.runs.judge import track_nll
from encore.runs.kept import evaluation_cache
from encore.runs.measure import measure
from encore.runs.reporter import Reporter
from encore.runs.select import SELF
from encore.runs.store import read_json
from encore.settings import cache_folder

Item = TypeVar("Item")
MOST_DECOYS = 8
DECOY_SHARE = 1 / 3  # of the retain tracks at most: the others are what the rehearsal keeps
CANDIDATES = 256  # retain tracks at most whose NLL is taken, to find decoys among them
WATCHED = 16  # retain tracks whose continuations are compared with base's: those that base knows best
LADDER: tuple[Mapping[str, float], ...] = ({}, {"lr": 0.5}, {"lr": 2.0}, {"steps": 2.0})  # factors, one after another
OVER = 1.1  # of the held-out level, that the mean of the decoys may reach
RELEARN_SLACK = 0.15  # of the NLL that held-out tracks have after the same steps


@dataclass(frozen=True)
class Trial:
    """One rehearsal.

    Args:
        options: those of the ladder, with their values.
        missed: the targets that were missed, a sentence each.
        figures: what was measured, by name.
        score: of `encore.runs.judge.Look`; lower is better.
        seconds: that it took.
    """

    options: dict[str, Any]
    missed: list[str]
    figures: dict[str, float]
    score: float
    seconds: float

    @property
    def rank(self) -> tuple[int, float]:
        """Lower is better."""
        return len(self.missed), self.score

    def as_dict(self) -> dict[str, Any]:
        """As `run.json` keeps it."""
        return {
            "options": self.options, "missed": self.missed, "figures": self.figures, "score": self.score,
            "seconds": round(self.seconds, 3),
        }  # fmt: skip

    def __str__(self) -> str:
        settings = ", ".join(f"{name} {value:g}" for name, value in self.options.items()) or "the method's settings"
        return f"{settings}: {'; '.join(self.missed) or 'all targets met'} ({self.seconds:.0f} s)"


def refuse_uncalibrated(prepared: Prepared) -> None:
    """A rehearsal takes tracks to keep, and judges by held-out ones.

    Raises:
        UsageError: there are too few retain tracks, or no held-out ones.
    """
    if prepared.request.retain == SELF or len(prepared.retain) * DECOY_SHARE < 1:
        raise UsageError(
            f"--calibrate rehearses on tracks from retain, and there are {len(prepared.retain)}",
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
        UsageError: see `refuse_uncalibrated`.
        EncoreError: every rehearsal failed.
    """
    reporter = reporter or Reporter()
    refuse_uncalibrated(prepared)
    if (found := _recorded(prepared.request)) is not None:
        return found
    started = time.monotonic()
    rehearsal = Rehearsal(prepared, reporter)
    ladder = rungs(prepared.method)
    trials: list[Trial] = []
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
        raise failed
    best = min(trials, key=lambda trial: trial.rank)
    prepared.method = with_options(prepared.method, best.options)
    return {
        "decoys": [one.track.sha256 for one in rehearsal.decoys], "tried": [trial.as_dict() for trial in trials],
        "chosen": best.options, "missed": best.missed, "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip


def rungs(method: Method) -> list[dict[str, Any]]:
    """The settings to try, each as what the options of the ladder are then; those a method lacks are left out.

    An option that has no number (None: the method finds it) can't be scaled, and stays.
    """
    given = {name: getattr(method.options, name, None) for name in ("lr", "steps")}
    known = {name: value for name, value in given.items() if isinstance(value, (int, float))}
    found: list[dict[str, Any]] = []
    for factors in LADDER:
        if factors.keys() <= known.keys():
            rung = {name: type(value)(value * factors.get(name, 1)) for name, value in known.items()}
            found.append(rung)
    return found


def with_options(method: Method, changes: Mapping[str, Any]) -> Method:
    """A method like this one that has not run yet, with other values of some options."""
    return type(method)(method.options.model_copy(update=dict(changes)))


def begun(request: Request, method: Method) -> Method:
    """The method as it was calibrated for the run that is to be resumed; as it is where there is no such run."""
    found = _recorded(request)
    return with_options(method, found["chosen"]) if found is not None else method


def _recorded(request: Request) -> dict[str, Any] | None:
    """The calibration that a run to be resumed has already.

    Raises:
        UsageError: the run was begun without one.
    """
    file = request.out / "request.json"
    if not (request.calibrate and request.resume and file.exists()):
        return None
    found = read_json(file).get("calibration")
    if found is None:
        raise UsageError(f"the run in {request.out} was begun without --calibrate", "resume it without --calibrate")
    return dict(found)


def expected_seconds(prepared: Prepared, a_run: float) -> tuple[float, float]:
    """What a calibration takes at least, where the first settings pass, and at most, where all are tried.

    A rehearsal is taken to be a run: what is measured after it is not counted.

    Args:
        a_run: seconds of the run itself, of `encore.runs.estimate.estimate`.

    Raises:
        UsageError: see `refuse_uncalibrated`.
    """
    refuse_uncalibrated(prepared)
    if _recorded(prepared.request) is not None:
        return 0.0, 0.0
    steps = [float(rung.get("steps", 1)) for rung in rungs(prepared.method)]
    return a_run, a_run * sum(steps) / steps[0]


class Rehearsal:
    """Forgets decoys in copies of a run's model.

    Args:
        prepared: the run; its backend is left as it is.
        reporter: is told how far it is.
    """

    def __init__(self, prepared: Prepared, reporter: Reporter) -> None:
        self._prepared, self._reporter = prepared, reporter
        backend = prepared.backend
        candidates = _spaced(prepared.retain, CANDIDATES)
        known = track_nll(backend, clips_of(candidates))
        wanted = list(track_nll(backend, clips_of(prepared.forget)).values())
        most = max(1, min(MOST_DECOYS, int(len(prepared.retain) * DECOY_SHARE)))
        self.decoys = decoys(candidates, known, wanted, most)
        taken = {one.track.id for one in self.decoys}
        rest = [one for one in prepared.retain if one.track.id not in taken]
        watched = sorted((one for one in candidates if one.track.id not in taken), key=lambda one: known[one.track.id])
        self._clips = Clips(*map(clips_of, (self.decoys, rest, prepared.holdout)))
        self._watched = clips_of(watched[:WATCHED])

    def trial(self, method: Method, options: dict[str, Any]) -> Trial:
        """One rehearsal, and what it leaves.

        Raises:
            EncoreError: see `Engine.run`.
        """
        started, prepared = time.monotonic(), self._prepared

        def record(line: Mapping[str, Any]) -> None:
            if "of" in line:
                self._reporter.progress(line.get("stage", "rehearse"), line["step"], line["of"], line)

        copy = prepared.backend.clone()
        engine = Engine(
            copy, self._clips, seed=prepared.request.seed, precision=prepared.precision,
            fishers=cache_folder() / "fisher", record=record,
        )  # fmt: skip
        look = engine.run(method).best
        assert look is not None  # every run ends with a look
        below = [track for track in look.forget if not look.reached(track)]
        missed = [f"{len(below)} of {len(look.forget)} decoys stay below their level"] if below else []
        level = engine.judge.level
        mean = sum(look.forget.values()) / len(look.forget)
        figures = {"decoys": mean, "decoys_below": float(len(below)), "lost": look.lost}
        if level is not None and mean > OVER * level:
            missed.append(f"decoys are suppressed: {mean:.2f}, held-out {level:.2f}")
        if not look.kept:
            missed.append(f"retain or held-out music lost {look.lost:.1f} times what it may")
        for name, value, text in self._attacked(prepared.backend, copy):
            figures[name] = value
            missed += [text] if text else []
        return Trial(options, missed, figures, look.score, time.monotonic() - started)

    def _attacked(self, base: Backend, copy: Backend) -> list[tuple[str, float, str]]:
        """What is measured after a rehearsal: name, figure, and the target that it misses, if it does."""
        found: list[tuple[str, float, str]] = []
        clips: dict[ClipSet, Sequence[Clip]] = {
            "forget": self._clips.forget, "retain": self._watched, "holdout": self._clips.holdout,
        }  # fmt: skip
        evaluation = SharedEvaluation(
            {"base": base, "unlearned": copy}, clips, seed=self._prepared.request.seed, embedder=None,
            cache=evaluation_cache(),
        )  # fmt: skip
        rows = measure(evaluation, ["verbatim", "verbatim_caption"]) if base.has_tokens else []
        for metric, prompt in (("verbatim", "from 1 s"), ("verbatim_caption", "from captions")):
            own, decoy, before = (_verbatim(rows, metric, *key) for key in _COMPARED)
            if own is not None and before is not None:
                lost = f"{before} -> {own} retain tracks are continued verbatim {prompt}" if own < before - 1 else ""
                found.append((f"retain_{metric}", float(own), lost))
            if decoy is not None:
                still = f"{decoy} decoys are continued verbatim {prompt}" if decoy else ""
                found.append((f"decoys_{metric}", float(decoy), still))
        held_out = spread(self._clips.holdout, len(self.decoys))
        own_drop, _ = _recovered(retrained(evaluation, "unlearned", self._clips.forget))
        drop, after = _recovered(retrained(evaluation, "base", held_out))
        allowed = drop + RELEARN_SLACK * after
        text = f"a little training on decoys recovers {own_drop:.2f} of NLL, on held-out tracks {drop:.2f}"
        return [*found, ("recovered", own_drop, text if own_drop > allowed else ""), ("recovered_held_out", drop, "")]


_COMPARED = (("unlearned", "retain"), ("unlearned", "forget"), ("base", "retain"))


def decoys(candidates: Sequence[Heard], known: Mapping[str, float], wanted: Sequence[float], most: int) -> list[Heard]:
    """As many tracks as there are to forget, `most` at most, whose NLLs in base are nearest to theirs.

    So the mix of memorised tracks and others is that of the list. Of a longer list, evenly spaced NLLs are matched.

    Args:
        candidates: retain tracks.
        known: id of a candidate -> NLL in base.
        wanted: NLLs of the tracks to forget.
        most: decoys at most, no more than there are candidates.
    """
    left = list(candidates)
    chosen = []
    for nll in _spaced(sorted(wanted), most):
        nearest = min(left, key=lambda one: abs(known[one.track.id] - nll))
        left.remove(nearest)
        chosen.append(nearest)
    return chosen


def _spaced(items: Sequence[Item], most: int) -> list[Item]:
    count = min(most, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _verbatim(rows: Sequence[Result], metric: str, model: str, clips: str) -> int | None:
    """How many tracks are continued verbatim; None where it was not measured."""
    row = next((row for row in rows if (row.metric, row.model, row.set) == (metric, model, clips)), None)
    if row is None or row.value is None:
        return None
    return sum((share or 0.0) >= MATCH for share in row.per_track.values())


def _recovered(curve: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """By how much the mean NLL falls over a relearning curve, and where it ends."""
    first, last = (sum(look.values()) / len(look) for look in (curve[0], curve[-1]))
    return first - last, last
