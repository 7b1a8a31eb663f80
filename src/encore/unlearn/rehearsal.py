"""One rehearsal of `encore forget --calibrate`: decoys in place of the tracks to forget, on a copy of the model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from encore.api import Backend, Clip, ClipSet, Method
from encore.data.encode import EncodedTrack, clips_of
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.result_cache import evaluation_cache
from encore.metrics.robustness.relearn import evenly_spaced, relearning_curve
from encore.reporter import Reporter
from encore.settings import cache_folder
from encore.unlearn.engine import Clips, Engine
from encore.unlearn.monitor import mean, track_nll
from encore.unlearn.run import Prepared
from encore.unlearn.targets import missed
from encore.unlearn.verbatim_check import VerbatimCheck

Item = TypeVar("Item")
MOST_DECOYS = 8
DECOY_SHARE = 1 / 3  # of the retain tracks at most: the others are what the rehearsal keeps
CANDIDATES = 256  # retain tracks at most whose NLL is taken, to find decoys among them
RELEARN_SLACK = 0.15  # of the NLL that held-out tracks have after the same steps


@dataclass(frozen=True)
class RehearsalResult:
    """One rehearsal.

    Args:
        options: those of the ladder, with their values.
        missed: the targets that were missed, a sentence each.
        figures: what was measured, by name.
        score: of `encore.unlearn.monitor.Snapshot`; lower is better.
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
        self._clips = Clips(*map(clips_of, (self.decoys, rest, prepared.holdout)))

    def trial(self, method: Method, options: dict[str, Any]) -> RehearsalResult:
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
        check = VerbatimCheck(copy, engine.monitor.memorised, self._clips.forget)
        look = engine.run(method).best
        assert look is not None  # every run ends with a look
        targets = missed(engine.monitor.first, look, copy.unit, check.after())
        relearned, figures = self._relearned(prepared.backend, copy)
        said = [one["says"].replace("forget track", "decoy") for one in targets] + relearned
        figures |= {"decoys": mean(look.forget), "lost": look.worst_harm}
        return RehearsalResult(options, said, figures, look.score, time.monotonic() - started)

    def _relearned(self, base: Backend, copy: Backend) -> tuple[list[str], dict[str, float]]:
        """What a little training on the decoys recovers, beside what base learns of held-out tracks in the same steps.

        Gold would keep 85 % of its NLL and more; what it would learn is taken to be what base learns of held-out music.

        Returns:
            The target that is missed, if it is, in a sentence; and the figures.
        """
        clips: dict[ClipSet, Sequence[Clip]] = {"forget": self._clips.forget, "holdout": self._clips.holdout}
        evaluation = SharedEvaluation(
            {"base": base, "unlearned": copy}, clips, seed=self._prepared.request.seed, embedder=None,
            cache=evaluation_cache(),
        )  # fmt: skip
        own, _ = _recovered(relearning_curve(evaluation, "unlearned", self._clips.forget))
        decoys = evenly_spaced(self._clips.holdout, len(self.decoys))
        held_out, after = _recovered(relearning_curve(evaluation, "base", decoys))
        figures = {"recovered": own, "recovered_held_out": held_out}
        if own <= held_out + RELEARN_SLACK * after:
            return [], figures
        text = f"a little training on the decoys takes {own:.2f} off their NLL, on held-out tracks {held_out:.2f}"
        return [text], figures


def decoys(
    candidates: Sequence[EncodedTrack], known: Mapping[str, float], wanted: Sequence[float], most: int
) -> list[EncodedTrack]:
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


def _recovered(curve: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """By how much the mean NLL falls over a relearning curve, and where it ends."""
    first, last = mean(curve[0]), mean(curve[-1])
    return first - last, last
