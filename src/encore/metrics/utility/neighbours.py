"""Guard: retain tracks by the same artists or of the same genres as the forget tracks, apart from the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from encore.api import Clip, Evaluation, Metric, Result
from encore.data.artists import without_note
from encore.metrics.memorization.verbatim import MODELS, PROMPT_SECONDS, right_shares, verbatim_row
from encore.metrics.rows import available_roles, mean_row, no_continuations, unmeasured

UNKNOWN = re.compile(r"traditional|trad\.?|anonymous|anon\.?|unknown( (artist|composer))?|various( artists)?|n/a|none")


class Neighbours(Metric):
    """NLL and verbatim continuation of retain tracks that share an artist or a genre with a forget track.

    Rows `neighbours_nll` and `neighbours_verbatim`, and for all other retain tracks `neighbours_rest_nll` and
    `neighbours_rest_verbatim`, of set "retain": a mean over all of retain hides losses close to the forget tracks.
    Artists are compared without case, Unicode form and text in parentheses at the end; "traditional" and the like are
    ignored.
    `details["because"]` has the artist or genre that a track shares.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        shared = neighbours(evaluation)
        if isinstance(shared, str):
            yield unmeasured("neighbours_nll", "unlearned", "retain", shared)
            return
        retain = evaluation.clips["retain"]
        for name, near in (("neighbours", True), ("neighbours_rest", False)):
            clips = [clip for clip in retain if (clip.track in shared) == near]
            if not clips:
                why = f"{'no' if near else 'every'} retain track shares an artist or a genre with a forget track"
                yield unmeasured(f"{name}_nll", "unlearned", "retain", why)
                continue
            yield from self._rows(evaluation, name, clips, shared if near else {})

    def _rows(
        self, evaluation: Evaluation, name: str, clips: list[Clip], shared: Mapping[str, str]
    ) -> Iterator[Result]:
        kept = {clip.track for clip in clips}
        details = {"because": dict(shared)} if shared else {}
        for model in available_roles(evaluation, *MODELS):
            backend = evaluation.backend(model)
            nll = {track: value for track, value in evaluation.nll(model, "retain").items() if track in kept}
            yield mean_row(
                f"{name}_nll", model, "retain", nll, evaluation, unit=backend.unit, direction="base", details=details
            )
            if why := no_continuations(evaluation, model, "retain"):
                yield unmeasured(f"{name}_verbatim", model, "retain", why, unit="share")
                continue
            shares = right_shares(evaluation, model, "retain", PROMPT_SECONDS)
            shares = {track: share for track, share in shares.items() if track in kept}
            yield verbatim_row(f"{name}_verbatim", model, "retain", shares, PROMPT_SECONDS, details=details)


def neighbours(evaluation: Evaluation) -> dict[str, str] | str:
    """The shared artist or genre of each retain track that has one; or why there is none."""
    forgotten = {clip.track for clip in evaluation.clips["forget"]}
    shared = {fact for track in forgotten for fact in _facts(evaluation.track_metadata.get(track, {}))}
    if not shared:
        return "no artist or genre of a forget track is known"
    by_track = {}
    for track in sorted({clip.track for clip in evaluation.clips["retain"]}):
        same = [
            f"{kind} {value}"
            for kind, value in _facts(evaluation.track_metadata.get(track, {}))
            if (kind, value) in shared
        ]
        if same:
            by_track[track] = ", ".join(same)
    return by_track


def _facts(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """Artist and genre, normalised for comparison."""
    named = ((kind, without_note(metadata.get(kind, ""))) for kind in ("artist", "genre"))
    return [(kind, value) for kind, value in named if value and not UNKNOWN.fullmatch(value)]
