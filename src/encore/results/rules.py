"""Whether the unlearned model meets a target: the rules that a row's `RowSpec.judge` names.

Each takes a row's results by role, those with a figure alone. It raises KeyError with a role where that role has no
figure to compare with, or where the test could not fail: base passes it too, or the tracks are too few.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping

from encore.api import Result
from encore.errors import PluginError
from encore.memorised import MEAN_RISE, OTHER_SHARE, TRACK_RISE

Figures = Mapping[str, Result]  # role -> row with a figure
NLL_SLACK = 0.10  # relative to gold, on both sides
LEAST_P = 0.05
KL_SLACK = 1.25  # times the seed noise
TRACK_RANGE = (0.5, 2.0)  # times gold's NLL, in which every single track must be
RETAIN_SLACK = (0.05, 0.05)  # relative, nats/token: the larger one counts (relative alone for another unit)
RELEARN_SHARE = 0.75  # of gold's NLL after the attack
AUC_RANGE = (0.35, 0.65)  # and as far as gold's own, give or take one pair of tracks
ROUNDING = 1e-9  # an AUC is a ratio of counts
STRENGTH_SLACK = 0.1  # of a track's length: golds of two seeds differ by .02, and a held last note is easily guessed


def rule(name: str) -> Callable[[Figures], bool]:
    """The rule of a name, or of "package.module:function".

    Raises:
        PluginError: there is none.
    """
    module, _, function = name.rpartition(":")
    try:
        judge = getattr(importlib.import_module(module), function) if module else RULES[name]
    except (ImportError, AttributeError, KeyError) as error:
        raise PluginError(f"there is no rule {name!r} to judge a row by", "see encore.results.rules") from error
    return judge  # type: ignore[no-any-return]


def _value(figures: Figures, role: str) -> float:
    value = figures[role].value
    assert value is not None  # rows without a figure are not among them
    return value


def _count(figures: Figures, role: str) -> int:
    return round(_value(figures, role) * figures[role].n)


def kl(figures: Figures) -> bool:
    """At most `KL_SLACK` times the KL between two golds."""
    return _value(figures, "unlearned") <= KL_SLACK * _value(figures, "gold2")


def nll(figures: Figures) -> bool:
    """As near to gold's as `NLL_SLACK`, every track within `TRACK_RANGE`."""
    unlearned, gold = _value(figures, "unlearned"), _value(figures, "gold")
    near = abs(unlearned - gold) <= NLL_SLACK * gold
    low, high = TRACK_RANGE
    return near and all(low <= ratio <= high for ratio in ratios(figures).values())


def ratios(figures: Figures) -> dict[str, float]:
    """Each track's figure relative to gold's; a KeyError where there is no gold."""
    unlearned, gold = figures["unlearned"].per_track, figures["gold"].per_track
    pairs = {track: (value, gold.get(track)) for track, value in unlearned.items()}
    return {track: a / b for track, (a, b) in pairs.items() if a is not None and b}


def retain_nll(figures: Figures) -> bool:
    """Of memorised tracks and of others apart, where base's row says which they are."""
    base = _value(figures, "base")
    relative, nats = RETAIN_SLACK
    least = 0.0 if figures["base"].unit == "loss" else nats
    limit = figures["base"].details.get("memorised_below")
    pairs = _pairs(figures)
    if not isinstance(limit, (int, float)) or not pairs:
        return _value(figures, "unlearned") - base <= max(relative * base, least)
    memorised = [pair for pair in pairs if pair[0] < limit]
    not_memorised = [pair for pair in pairs if not pair[0] < limit]
    return all(
        sum(now - was for was, now in part) <= max(share * sum(was for was, _ in part), slack * len(part))
        for part, share, slack in ((memorised, relative, MEAN_RISE), (not_memorised, OTHER_SHARE, 0.0))
    ) and all(now - was <= TRACK_RISE for was, now in memorised)


def _pairs(figures: Figures) -> list[tuple[float, float]]:
    """Each track's figure in base and in the unlearned model."""
    base, unlearned = figures["base"].per_track, figures["unlearned"].per_track
    both = ((base[track], unlearned[track]) for track in base.keys() & unlearned.keys())
    return [(was, now) for was, now in both if was is not None and now is not None]


def relearned(figures: Figures) -> bool:
    """At least `RELEARN_SHARE` of gold's."""
    return _value(figures, "unlearned") >= RELEARN_SHARE * _value(figures, "gold")


def verbatim(figures: Figures) -> bool:
    """A test that base passes as well says nothing, unless the unlearned model fails it."""
    if _count(figures, "unlearned") > _count(figures, "gold"):
        return False
    if "base" in figures and _count(figures, "base") <= _count(figures, "gold"):
        raise KeyError("base")
    return True


def attacked_nll(figures: Figures) -> bool:
    """Not below gold's, as a mean and a track at a time. What is above it is judged on the plain NLL."""

    def below(role: str) -> bool:
        relative = ratios({"unlearned": figures[role], "gold": figures["gold"]}).values()
        mean = _value(figures, role) / _value(figures, "gold")
        return mean < 1 - NLL_SLACK or any(ratio < TRACK_RANGE[0] for ratio in relative)

    if below("unlearned"):
        return False
    if "base" in figures and not below("base"):
        raise KeyError("base")
    return True


def strength(figures: Figures) -> bool:
    """Judged per track: a mean hides a single track that is fully recovered."""

    def beyond(role: str) -> bool:
        shares, gold = figures[role].per_track, figures["gold"].per_track
        return any((shares[track] or 0.0) > (gold[track] or 0.0) + STRENGTH_SLACK for track in shares.keys() & gold)

    if beyond("unlearned"):
        return False
    if "base" in figures and not beyond("base"):
        raise KeyError("base")
    return True


def retain_verbatim(figures: Figures) -> bool:
    """At most one track fewer than base's."""
    return _count(figures, "unlearned") >= _count(figures, "base") - 1


def artefacts(figures: Figures) -> bool:
    """No more generations with artefacts than gold's, without gold none: base's own set the scale."""
    return _count(figures, "unlearned") <= (_count(figures, "gold") if "gold" in figures else 0)


def membership(figures: Figures) -> bool:
    """As near to a half, or to gold's, as `AUC_RANGE`, but for a tolerance."""
    row, gold = figures["unlearned"], _value(figures, "gold") if "gold" in figures else 0.5
    slack = _one_pair(row) + ROUNDING
    return min(AUC_RANGE[0], gold) - slack <= _value(figures, "unlearned") <= max(AUC_RANGE[1], gold) + slack


def _one_pair(row: Result) -> float:
    """What one pair of a forget and a holdout track adds to an AUC: its smallest possible difference."""
    members, others = (row.details.get(name) for name in ("forget", "holdout"))
    return 1 / (members * others) if isinstance(members, int) and isinstance(others, int) and members * others else 0.0


def membership_p(figures: Figures) -> bool:
    """Not judged if the attacks do not detect base, or detect gold: then the sets differ, whatever a model knows.

    Without base, not judged if so few tracks could never be detected.
    """
    if "gold" in figures and _value(figures, "gold") < LEAST_P:
        raise KeyError("gold")
    reached = _value(figures, "base") if "base" in figures else _least_p(figures["unlearned"])
    if reached >= LEAST_P:
        raise KeyError("base")
    return _value(figures, "unlearned") >= LEAST_P


def _least_p(row: Result) -> float:
    """That of two sets in perfect order: one of C(n, members) orders, on either side, times the number of attacks."""
    attacks = row.details.get("attacks")
    tests = len(attacks) if isinstance(attacks, Mapping) else 1
    return tests * 2 / math.comb(row.n, len(row.per_track))


def nearer_to_gold(figures: Figures) -> bool:
    """Not significantly nearer to base than to gold; not judged where base itself would pass."""

    def nearer_to_base(role: str) -> bool:
        p = figures[role].details.get("p")
        return isinstance(p, float) and p < LEAST_P

    if not nearer_to_base("base"):
        raise KeyError("base")
    return not nearer_to_base("unlearned")


RULES: Mapping[str, Callable[[Figures], bool]] = {
    judge.__name__: judge
    for judge in (
        kl, nll, retain_nll, relearned, verbatim, retain_verbatim, attacked_nll, strength, artefacts, membership,
        membership_p, nearer_to_gold,
    )
}  # fmt: skip
