"""One rehearsal of `encore forget --calibrate`: decoys in place of the tracks to forget, on a copy of the model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from encore.api import Backend, Clip, ClipSet, Method
from encore.data.encoded_tracks import EncodedTrack, StreamedTracks, clips_of
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.result_cache import evaluation_cache
from encore.metrics.robustness.relearn import evenly_spaced, relearning_curve
from encore.reporter import Reporter
from encore.settings import cache_folder
from encore.unlearn.engine import Engine
from encore.unlearn.gold_free_targets import missed
from encore.unlearn.monitor import mean, track_nll
from encore.unlearn.run import Prepared
from encore.unlearn.sampling import Clips
from encore.unlearn.setup import engine_settings, recorder
from encore.unlearn.verbatim_check import VerbatimCheck

Item = TypeVar("Item")
MOST_DECOYS = 8
DECOY_SHARE = 1 / 3  # at most this share of the retain tracks; the rehearsal keeps the others
CANDIDATES = 256  # at most this many retain tracks are searched for decoys
RELEARN_SLACK = 0.15  # as a share of the NLL that held-out tracks have after the same steps


@dataclass(frozen=True)
class RehearsalResult:
    """The result of one rehearsal.

    Args:
        options: values of the scaled options.
        missed: one sentence per missed target.
        figures: measurements by name.
        score: of `encore.unlearn.monitor.Snapshot`; lower is better.
        seconds: duration.
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
        """The record for `run.json`."""
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
        prepared: the run; its backend is not changed.
        reporter: receives progress.
    """

    def __init__(self, prepared: Prepared, reporter: Reporter) -> None:
        self._prepared, self._reporter = prepared, reporter
        backend = prepared.backend
        candidates = _spaced(prepared.retain, CANDIDATES)
        nll = track_nll(backend, clips_of(candidates))
        targets = list(track_nll(backend, clips_of(prepared.forget)).values())
        most = max(1, min(MOST_DECOYS, int(len(prepared.retain) * DECOY_SHARE)))
        self.decoys = decoys(candidates, nll, targets, most)
        taken = {decoy.track.id for decoy in self.decoys}
        rest: Sequence[EncodedTrack]
        if isinstance(prepared.retain, StreamedTracks):
            files = [decoy.track.sha256 for decoy in self.decoys]
            rest = StreamedTracks(prepared.retain.tracks.of_files(files, others=True))
        else:
            rest = [encoded for encoded in prepared.retain if encoded.track.id not in taken]
        self._clips = Clips(*map(clips_of, (self.decoys, rest, prepared.holdout)))

    def trial(self, method: Method, options: dict[str, Any]) -> RehearsalResult:
        """Rehearse with a method, and measure the result.

        Args:
            method: has not run yet.
            options: its scaled options, for the record.

        Raises:
            EncoreError: see `Engine.run`.
        """
        started, prepared = time.monotonic(), self._prepared
        record = recorder(None, self._reporter, "rehearse", started, None)
        copy = prepared.backend.clone()
        engine = Engine(
            copy, self._clips, fisher_folder=cache_folder() / "fisher", record=record,
            **engine_settings(prepared.request, prepared.precision, prepared.checkpoint_activations),
        )  # fmt: skip
        check = VerbatimCheck(copy, engine.monitor.memorised, self._clips.forget)
        snapshot = engine.run(method).best
        assert snapshot is not None  # every run ends with a snapshot
        targets = missed(engine.monitor.first, snapshot, copy.unit, check.after())
        relearned, figures = self._relearned(prepared.backend, copy)
        sentences = [target["message"].replace("forget track", "decoy") for target in targets] + relearned
        figures |= {"decoys": mean(snapshot.forget), "lost": snapshot.worst_harm}
        return RehearsalResult(options, sentences, figures, snapshot.score, time.monotonic() - started)

    def _relearned(self, base: Backend, copy: Backend) -> tuple[list[str], dict[str, float]]:
        """How much a little training on the decoys recovers, compared with base on held-out tracks in the same steps.

        Gold would keep 85 % of its NLL and more; its fall is approximated by that of base on held-out music.

        Returns:
            A sentence if the target is missed; and the figures.
        """
        clips: dict[ClipSet, Sequence[Clip]] = {"forget": self._clips.forget, "holdout": self._clips.holdout}
        evaluation = SharedEvaluation(
            {"base": base, "unlearned": copy}, clips, seed=self._prepared.request.seed, embedder=None,
            cache=evaluation_cache(),
        )  # fmt: skip
        recovered, _ = _recovered(relearning_curve(evaluation, "unlearned", self._clips.forget))
        decoys = evenly_spaced(self._clips.holdout, len(self.decoys))
        held_out, after = _recovered(relearning_curve(evaluation, "base", decoys))
        figures = {"recovered": recovered, "recovered_held_out": held_out}
        if recovered <= held_out + RELEARN_SLACK * after:
            return [], figures
        text = (
            f"a little training lowers the NLL of the decoys by {recovered:.2f}, of held-out tracks by {held_out:.2f}"
        )
        return [text], figures


def decoys(
    candidates: Sequence[EncodedTrack], candidate_nll: Mapping[str, float], forget_nll: Sequence[float], most: int
) -> list[EncodedTrack]:
    """As many tracks as there are to forget, at most `most`, whose NLLs in base are nearest to theirs.

    So they have the same mix of memorised and other tracks. Of a longer list, evenly spaced NLLs are matched.

    Args:
        candidates: retain tracks.
        candidate_nll: id of a candidate -> NLL in base.
        forget_nll: NLLs of the tracks to forget.
        most: largest number of decoys, at most that of the candidates.
    """
    left = list(candidates)
    chosen = []
    for nll in _spaced(sorted(forget_nll), most):
        nearest = min(left, key=lambda encoded: abs(candidate_nll[encoded.track.id] - nll))
        left.remove(nearest)
        chosen.append(nearest)
    return chosen


def _spaced(items: Sequence[Item], most: int) -> list[Item]:
    count = min(most, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _recovered(curve: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """The fall of the mean NLL over a relearning curve, and its last value."""
    first, last = mean(curve[0]), mean(curve[-1])
    return first - last, last
