"""Guard: what forgetting costs the music that is nearest to the forgotten tracks, apart from the rest of retain."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from encore.api import Clip, Evaluation, Metric, Result
from encore.metrics.memorization.verbatim import MODELS, PROMPT_SECONDS, replay_row, right_shares
from encore.metrics.rows import given, mean_row, not_finite, unmeasured

NOBODY = re.compile(r"traditional|trad\.?|anonymous|anon\.?|unknown( (artist|composer))?|various( artists)?|n/a|none")


class Neighbours(Metric):
    """NLL and replay of retain tracks by a forgotten artist or of a forgotten genre, and of all others.

    Rows `neighbours_nll` and `neighbours_verbatim`, and of the others `neighbours_rest_nll` and
    `neighbours_rest_verbatim`, of set "retain": a mean over all of retain hides what is lost next to the forgotten
    tracks. Artists are compared without case and what stands in parentheses; "traditional" and the like are nobody.
    `details["because"]` says which artist or genre a track shares.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        because = neighbours(evaluation)
        if isinstance(because, str):
            yield unmeasured("neighbours_nll", "unlearned", "retain", because)
            return
        retain = evaluation.clips["retain"]
        for name, near in (("neighbours", True), ("neighbours_rest", False)):
            chosen = [clip for clip in retain if (clip.track in because) == near]
            if not chosen:
                who = "shares an artist or a genre with a forgotten one" if near else "is without one in common"
                yield unmeasured(f"{name}_nll", "unlearned", "retain", f"no retain track {who}")
                continue
            yield from self._rows(evaluation, name, chosen, because if near else {})

    def _rows(
        self, evaluation: Evaluation, name: str, chosen: list[Clip], because: Mapping[str, str]
    ) -> Iterator[Result]:
        kept = {clip.track for clip in chosen}
        details = {"because": dict(because)} if because else {}
        for model in given(evaluation, *MODELS):
            backend = evaluation.backend(model)
            nll = {track: value for track, value in evaluation.nll(model, "retain").items() if track in kept}
            yield mean_row(
                f"{name}_nll", model, "retain", nll, evaluation, unit=backend.unit, direction="base", details=details
            )
            why = not_finite(evaluation, model, "retain") if backend.has_tokens else "the model has no tokens"
            if why:
                yield unmeasured(f"{name}_verbatim", model, "retain", why, unit="share")
                continue
            shares = right_shares(evaluation, model, "retain", PROMPT_SECONDS)
            shares = {track: share for track, share in shares.items() if track in kept}
            yield replay_row(f"{name}_verbatim", model, "retain", shares, PROMPT_SECONDS, details=details)


def neighbours(evaluation: Evaluation) -> dict[str, str] | str:
    """Retain tracks that share an artist or a genre with a forget track -> what they share; or why none is known."""
    forgotten = {clip.track for clip in evaluation.clips["forget"]}
    shared = {fact for track in forgotten for fact in _facts(evaluation.track_metadata.get(track, {}))}
    if not shared:
        return "no artist or genre of a forget track is known"
    found = {}
    for track in sorted({clip.track for clip in evaluation.clips["retain"]}):
        same = [
            f"{kind} {value}"
            for kind, value in _facts(evaluation.track_metadata.get(track, {}))
            if (kind, value) in shared
        ]
        if same:
            found[track] = ", ".join(same)
    return found


def _facts(about: Mapping[str, str]) -> list[tuple[str, str]]:
    """Artist and genre in a form that compares."""
    facts = []
    for kind in ("artist", "genre"):
        value = " ".join(re.sub(r"\([^)]*\)", " ", about.get(kind, "")).casefold().split())
        if value and not NOBODY.fullmatch(value):
            facts.append((kind, value))
    return facts
