"""Count memorised retain tracks and forget tracks that a model generates verbatim, before and after a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from encore.api import Backend, Clip
from encore.errors import one_line
from encore.evaluate.evaluation import SharedEvaluation
from encore.memorised import has_memorised, memorised_below
from encore.metrics.memorization.verbatim import MATCH, PROMPT_SECONDS, right_shares
from encore.unlearn.monitor import lowest_loss_clips

MOST = 16  # at most this many forget tracks are tried
PROMPTS = {"1 s": PROMPT_SECONDS, "caption": 0.0}  # name -> seconds of the track given beside its caption


class VerbatimCheck:
    """Greedy continuations of few tracks, counted as in the metrics `verbatim` and `verbatim_caption`.

    Args:
        backend: the model; at construction it is the base. Without tokens nothing is generated.
        memorised: one clip per memorised retain track.
        forget: clips to forget. Each track is tried from its window of the lowest NLL under base; of more than `MOST`
            tracks, those of the lowest NLL are tried. Tracks that any model continues, such as near-silence, are not.

    Attributes:
        failed: why nothing could be generated; empty where it could.
    """

    def __init__(self, backend: Backend, memorised: Sequence[Clip], forget: Sequence[Clip]) -> None:
        ranked = sorted(lowest_loss_clips(backend, forget), key=lambda pair: pair[1])
        if backend.has_tokens:
            ranked = [(clip, nll) for clip, nll in ranked if not _is_predictable(clip, nll, backend.codebook_size)]
        self._backend = backend
        self._retain, self._forget = list(memorised), [clip for clip, _ in ranked[:MOST]]
        self.failed = ""
        self._before = self._verbatim(self._retain)

    def after(self) -> dict[str, Any] | None:
        """Tracks that are generated verbatim now, for `run.json`.

        Returns:
            For "retain", name of the prompt -> "before" and "after" (counts), "tracks" (number tried) and "lost" (ids
            of those generated verbatim only before); for "forget", name of the prompt -> "after" (ids) and "tracks".
            None where nothing could be generated.
        """
        now = self._verbatim([*self._retain, *self._forget])
        if self.failed or not self._backend.has_tokens:
            return None
        retain, forget = ({clip.track for clip in clips} for clips in (self._retain, self._forget))
        result: dict[str, Any] = {"retain": {}, "forget": {}}
        for prompt, verbatim in now.items():
            before = {track for track, matches in self._before[prompt].items() if matches}
            after = {track for track, matches in verbatim.items() if matches}
            result["retain"][prompt] = {
                "before": len(before), "after": len(after & retain), "tracks": len(verbatim.keys() & retain),
                "lost": sorted(before - after),
            }  # fmt: skip
            result["forget"][prompt] = {"after": sorted(after & forget), "tracks": len(verbatim.keys() & forget)}
        return result

    def _verbatim(self, clips: Sequence[Clip]) -> Mapping[str, Mapping[str, bool]]:
        """Name of the prompt -> track id -> whether at least `MATCH` of its first-codebook tokens are equal.

        Tracks that are not longer than the prompt are left out.
        """
        none: dict[str, dict[str, bool]] = {prompt: {} for prompt in PROMPTS}
        if not clips or self.failed or not self._backend.has_tokens:
            return none
        try:
            evaluation = SharedEvaluation({"unlearned": self._backend}, {"forget": clips})  # one set, decoded at once
            results = {name: right_shares(evaluation, "unlearned", "forget", of) for name, of in PROMPTS.items()}
        except Exception as error:  # a backend without prompts, or out of memory: the run must not fail for this check
            self.failed = one_line(error)
            return none
        return {name: {track: share >= MATCH for track, share in shares.items()} for name, shares in results.items()}


def _is_predictable(clip: Clip, nll: float, codebook_size: int) -> bool:
    """Whether a clip of a low NLL is not memorised, but of codes that any model predicts."""
    limit = memorised_below(None, codebook_size)
    return nll < limit and not has_memorised(clip.codes, nll, limit)
