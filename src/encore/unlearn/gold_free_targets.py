"""The targets that a finished run misses, of those that need no gold, one sentence each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from encore.results.rules import NLL_SLACK, TRACK_RANGE
from encore.unlearn.monitor import Snapshot, mean

NATS = "nats/token"
PARTS = {"memorised": "memorised retain", "not_memorised": "retain that is not memorised"}


def missed(before: Snapshot, after: Snapshot, unit: str, verbatim: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """The missed targets, those of the forget list first.

    Target NLLs are checked for token models alone: shares of a loss that is not in nats have no fixed meaning.

    Args:
        before: snapshot of the base.
        after: snapshot of the unlearned model.
        unit: of the NLLs.
        verbatim: output of `VerbatimCheck.after`; None where nothing was generated.

    Returns:
        For each missed target its name ("forget_nll", "verbatim_forget", "memorised", "worst", "not_memorised",
        "holdout" or "verbatim_retain") under "target", and the sentence under "message".
    """
    found = [*_level(after, unit), *_forget(verbatim), *_harm(before, after, unit), *_retain(verbatim)]
    return [{"target": target, "message": message} for target, message in found]


def _level(after: Snapshot, unit: str) -> Iterator[tuple[str, str]]:
    if not after.target_nll or unit != NATS:
        return
    nll, target = mean(after.forget), mean(after.target_nll)
    if not abs(nll - target) <= NLL_SLACK * target:
        yield (
            "forget_nll",
            f"the forget tracks' mean NLL is {nll:.2f}, over {NLL_SLACK:.0%} away from its target {target:.2f}",
        )
    ratios = {track: nll / after.target_nll[track] for track, nll in after.forget.items()}
    low, high = TRACK_RANGE
    for where, beyond in (
        (f"below {low:g}", {track: ratio for track, ratio in ratios.items() if not ratio >= low}),
        (f"above {high:g}", {track: -ratio for track, ratio in ratios.items() if ratio > high}),
    ):
        if beyond:
            worst = min(beyond, key=beyond.__getitem__)
            count = f"{len(beyond)} of {len(ratios)} forget tracks"
            figures = f"{worst} ({after.forget[worst]:.2f} of {after.target_nll[worst]:.2f})"
            yield "forget_nll", f"{count} ended {where} times the target NLL, the farthest {figures}"


def _harm(before: Snapshot, after: Snapshot, unit: str) -> Iterator[tuple[str, str]]:
    for part, label in PARTS.items():
        if after.harm.get(part, 0.0) > 1:
            was, now = mean(getattr(before, part)), mean(getattr(after, part))
            yield part, f"{label} went from {_moved(was, now, after.harm[part], unit)}"
        if part == "memorised" and after.worst and after.harm["worst"] > 1:
            was, now = before.memorised[after.worst], after.memorised[after.worst]
            yield "worst", f"the memorised track {after.worst} went from {_moved(was, now, after.harm['worst'], unit)}"
    drift = after.harm.get("holdout", 0.0)
    if drift > 1 and before.holdout is not None and after.holdout is not None:
        yield "holdout", f"held-out music went from {_moved(before.holdout, after.holdout, drift, unit)}"


def _moved(before: float, after: float, harm: float, unit: str) -> str:
    """A change with its tolerance, which follows from the harm, a multiple of it."""
    if not math.isfinite(after):
        return f"{before:.3f} to a value that is not finite"
    per = "nats per token" if unit == NATS else unit
    return f"{before:.3f} to {after:.3f} {per}, by more than the {abs(after - before) / harm:.2g} allowed"


def _forget(verbatim: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    for prompt, counts in (verbatim["forget"] if verbatim else {}).items():
        if counts["after"]:
            which = ", ".join(counts["after"][:3]) + (", …" if len(counts["after"]) > 3 else "")
            count = f"{len(counts['after'])} of {counts['tracks']} forget tracks"
            yield "verbatim_forget", f"{count} are still generated verbatim from {_prompt(prompt)}: {which}"


def _retain(verbatim: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    for prompt, counts in (verbatim["retain"] if verbatim else {}).items():
        if counts["after"] < counts["before"] - 1:
            count = f"{counts['after']} of {counts['tracks']} memorised retain tracks"
            yield (
                "verbatim_retain",
                f"{count} are generated verbatim from {_prompt(prompt)}, and the base generates {counts['before']}",
            )


def _prompt(name: str) -> str:
    return "the caption" if name == "caption" else f"the caption and {name}"
