"""What a model generates of memorised retain tracks and of forget tracks, before and after a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from encore.api import Backend, Clip
from encore.errors import one_line
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.memorization.verbatim import MATCH, PROMPT_SECONDS, right_shares
from encore.unlearn.monitor import best_known

MOST = 16  # forget tracks that are tried
PROMPTS = {"1 s": PROMPT_SECONDS, "caption": 0.0}  # seconds of the track beside its caption


class VerbatimCheck:
    """Greedy continuations as the metrics `verbatim` and `verbatim_caption` count them, of few tracks.

    Args:
        backend: the model, in its state at construction the base. Without tokens nothing is generated.
        memorised: one clip per memorised retain track.
        forget: clips to forget. Each track is tried from the window that the base knows best; of more than `MOST`
            tracks, those that it knows best are.

    `failed` says why nothing could be generated; empty where it could.
    """

    def __init__(self, backend: Backend, memorised: Sequence[Clip], forget: Sequence[Clip]) -> None:
        known = sorted(best_known(backend, forget), key=lambda pair: pair[1])
        self._backend = backend
        self._retain, self._forget = list(memorised), [clip for clip, _ in known[:MOST]]
        self.failed = ""
        self._before = self._verbatim(self._retain)

    def after(self) -> dict[str, Any] | None:
        """Tracks that are generated verbatim now, for `run.json`.

        Returns:
            For "retain", how the prompt is named -> "before" and "after" (counts), "tracks" (how many were tried) and
            "lost" (ids of those that were generated verbatim before alone); for "forget", how the prompt is named ->
            "after" (ids) and "tracks". None where nothing could be generated; `failed` then says why.
        """
        now = self._verbatim([*self._retain, *self._forget])
        if self.failed or not self._backend.has_tokens:
            return None
        retain, forget = ({clip.track for clip in clips} for clips in (self._retain, self._forget))
        found: dict[str, Any] = {"retain": {}, "forget": {}}
        for prompt, verbatim in now.items():
            before = {track for track, replayed in self._before[prompt].items() if replayed}
            after = {track for track, replayed in verbatim.items() if replayed}
            found["retain"][prompt] = {
                "before": len(before), "after": len(after & retain), "tracks": len(verbatim.keys() & retain),
                "lost": sorted(before - after),
            }  # fmt: skip
            found["forget"][prompt] = {"after": sorted(after & forget), "tracks": len(verbatim.keys() & forget)}
        return found

    def _verbatim(self, clips: Sequence[Clip]) -> Mapping[str, Mapping[str, bool]]:
        """How the prompt is named -> whether at least `MATCH` of a track's first-codebook tokens are right.

        Tracks that are no longer than the prompt are left out.
        """
        none: dict[str, dict[str, bool]] = {prompt: {} for prompt in PROMPTS}
        if not clips or self.failed or not self._backend.has_tokens:
            return none
        try:
            evaluation = SharedEvaluation({"unlearned": self._backend}, {"forget": clips})  # one set, decoded at once
            found = {name: right_shares(evaluation, "unlearned", "forget", of) for name, of in PROMPTS.items()}
        except Exception as error:  # of a backend that can't go on from a prompt, or has no memory for it: the run is
            self.failed = one_line(error)  # worth more than this figure
            return none
        return {name: {track: share >= MATCH for track, share in shares.items()} for name, shares in found.items()}
