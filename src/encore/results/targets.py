"""What the rows of `metrics.json` come to: a table of roles, judged against its targets, and findings in sentences.

Reads rows only (no torch), so that a report can be made of a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from encore import plugins
from encore.api import Result
from encore.memorised import MEAN_RISE, OTHER_SHARE, TRACK_RISE
from encore.results.findings import LEAST_P, NLL_SLACK, Finding, from_rows

Figures = Mapping[str, Result]  # role -> row with a figure
KL_SLACK = 1.25  # times the seed noise
TRACK_RANGE = (0.5, 2.0)  # times gold's NLL, in which every single track must be
RETAIN_SLACK = (0.05, 0.05)  # relative, nats/token: the larger one counts (relative alone for another unit)
RELEARN_SHARE = 0.75  # of gold's NLL after the attack
AUC_RANGE = (0.35, 0.65)  # and as far as gold's own, give or take one pair of tracks
ROUNDING = 1e-9  # an AUC is a ratio of counts
STRENGTH_SLACK = 0.1  # of a track's length: golds of two seeds differ by .02, and a held last note is easily guessed


@dataclass(frozen=True)
class SummaryRow:
    """One line of the table.

    Args:
        label: what a person calls it. metric, set: which rows of `metrics.json` it shows.
        figures: role -> its row, also rows without a figure, whose `why` says why.
        target: what the unlearned model must reach, in words; empty where there is no target.
        met: whether it does; None without a target, where a figure it takes is missing, or where the test could not
            fail: it finds nothing in base either, or the tracks are too few.
        worst: the track that is farthest from where it should be, and its figure, in the unlearned model.
        lacks: where it has a target and is not judged: the role whose figure is missing, or shows nothing.
        own: whether it is of one of Encore's own metrics; whether a plugin's figure should be high or low is unknown.
    """

    label: str
    metric: str
    set: str
    figures: Mapping[str, Result]
    target: str = ""
    met: bool | None = None
    worst: tuple[str, float] | None = None
    lacks: str = ""
    own: bool = True


# --------------------------------------------------------------------------------------------------------- the table


def summary(results: Sequence[Result]) -> list[SummaryRow]:
    """The lines that a decision rests on, in reading order; lines nothing was measured for are left out."""
    rows = []
    for label, metric, clips, target, judge in (*LINES, *_heard(results)):
        figures = {row.model: row for row in results if (row.metric, row.set) == (metric, clips)}
        if not figures:
            continue
        known = {role: row for role, row in figures.items() if row.value is not None}
        lacks = ""
        try:
            met = judge(known) if judge else None
        except KeyError as error:  # a role it compares with has no figure, or none that says anything
            met, lacks = None, str(error.args[0])
        rows.append(SummaryRow(label, metric, clips, figures, target, met, _worst(metric, clips, known), lacks))
    return [*rows, *_of_plugins(results)]


def targets_met(table: Sequence[SummaryRow]) -> dict[str, tuple[int, int]]:
    """How many targets the unlearned model meets, and how many could be judged.

    Args:
        table: of `summary`.

    Returns:
        "keep" (targets on retain tracks) and "forget" (all others) -> (met, judged).
    """
    judged: dict[str, list[bool]] = {"forget": [], "keep": []}
    for line in table:
        if line.target and line.met is not None:
            judged["keep" if line.set == "retain" else "forget"].append(line.met)
    return {name: (sum(met), len(met)) for name, met in judged.items()}


def _of_plugins(results: Sequence[Result]) -> list[SummaryRow]:
    """A line a row of each metric that is not Encore's own, as the plugin named it."""
    theirs = tuple(f"{entry.spec.name}_" for entry in plugins.metrics() if entry.source.distribution != plugins.OWN)
    words = {entry.spec.name.partition("_")[0] for entry in plugins.metrics() if f"{entry.spec.name}_" not in theirs}
    found: dict[tuple[str, str], dict[str, Result]] = {}
    for row in results:  # a row's name begins with the first word of its metric's
        if row.metric.partition("_")[0] not in words or f"{row.metric}_".startswith(theirs):
            found.setdefault((row.metric, row.set), {})[row.model] = row
    return [
        SummaryRow(f"{metric}, {clips}" if clips else metric, metric, clips, figures, own=False)
        for (metric, clips), figures in found.items()
    ]


def _value(figures: Figures, role: str) -> float:
    value = figures[role].value
    assert value is not None  # rows without a figure are not among them
    return value


def _count(figures: Figures, role: str) -> int:
    return round(_value(figures, role) * figures[role].n)


def _kl(figures: Figures) -> bool:
    return _value(figures, "unlearned") <= KL_SLACK * _value(figures, "gold2")


def _forget_nll(figures: Figures) -> bool:
    own, gold = _value(figures, "unlearned"), _value(figures, "gold")
    near = abs(own - gold) <= NLL_SLACK * gold
    low, high = TRACK_RANGE
    return near and all(low <= ratio <= high for ratio in _ratios(figures).values())


def _ratios(figures: Figures) -> dict[str, float]:
    """Each track's figure relative to gold's; a KeyError where there is no gold."""
    own, gold = figures["unlearned"].per_track, figures["gold"].per_track
    pairs = {track: (value, gold.get(track)) for track, value in own.items()}
    return {track: a / b for track, (a, b) in pairs.items() if a is not None and b}


def _retain_nll(figures: Figures) -> bool:
    """Of memorised tracks and of others apart, where base's row says which they are."""
    base = _value(figures, "base")
    relative, nats = RETAIN_SLACK
    least = 0.0 if figures["base"].unit == "loss" else nats
    limit = figures["base"].details.get("memorised_below")
    pairs = _pairs(figures)
    if not isinstance(limit, (int, float)) or not pairs:
        return _value(figures, "unlearned") - base <= max(relative * base, least)
    memorised = [pair for pair in pairs if pair[0] < limit]
    other = [pair for pair in pairs if not pair[0] < limit]
    return all(
        sum(own - was for was, own in part) <= max(share * sum(was for was, _ in part), slack * len(part))
        for part, share, slack in ((memorised, relative, MEAN_RISE), (other, OTHER_SHARE, 0.0))
    ) and all(own - was <= TRACK_RISE for was, own in memorised)


def _pairs(figures: Figures) -> list[tuple[float, float]]:
    """Each track's figure in base and in the unlearned model."""
    base, own = figures["base"].per_track, figures["unlearned"].per_track
    both = ((base[track], own[track]) for track in base.keys() & own.keys())
    return [(was, now) for was, now in both if was is not None and now is not None]


def _relearn(figures: Figures) -> bool:
    return _value(figures, "unlearned") >= RELEARN_SHARE * _value(figures, "gold")


def _replays(figures: Figures) -> bool:
    """A test that base passes as well says nothing, unless the unlearned model fails it."""
    if _count(figures, "unlearned") > _count(figures, "gold"):
        return False
    if "base" in figures and _count(figures, "base") <= _count(figures, "gold"):
        raise KeyError("base")
    return True


def _recovered_nll(figures: Figures) -> bool:
    """Not below gold's, as a mean and a track at a time. What is above it is judged on the plain NLL."""

    def below(role: str) -> bool:
        ratios = _ratios({"unlearned": figures[role], "gold": figures["gold"]}).values()
        mean = _value(figures, role) / _value(figures, "gold")
        return mean < 1 - NLL_SLACK or any(ratio < TRACK_RANGE[0] for ratio in ratios)

    if below("unlearned"):
        return False
    if "base" in figures and not below("base"):
        raise KeyError("base")
    return True


def _strength(figures: Figures) -> bool:
    """A track at a time: one that comes back whole hides in a mean."""

    def beyond(role: str) -> bool:
        own, gold = figures[role].per_track, figures["gold"].per_track
        return any((own[track] or 0.0) > (gold[track] or 0.0) + STRENGTH_SLACK for track in own.keys() & gold.keys())

    if beyond("unlearned"):
        return False
    if "base" in figures and not beyond("base"):
        raise KeyError("base")
    return True


def _retain_replays(figures: Figures) -> bool:
    return _count(figures, "unlearned") >= _count(figures, "base") - 1


def _membership(figures: Figures) -> bool:
    """As near to a half, or to gold's, as `AUC_RANGE`, but for a tolerance."""
    own, gold = figures["unlearned"], _value(figures, "gold") if "gold" in figures else 0.5
    slack = _one_pair(own) + ROUNDING
    return min(AUC_RANGE[0], gold) - slack <= _value(figures, "unlearned") <= max(AUC_RANGE[1], gold) + slack


def _one_pair(row: Result) -> float:
    """What one pair of a forget and a holdout track adds to an AUC: with few tracks, as little as can be told apart."""
    members, others = (row.details.get(name) for name in ("forget", "holdout"))
    return 1 / (members * others) if isinstance(members, int) and isinstance(others, int) and members * others else 0.0


def _untold(figures: Figures) -> bool:
    """Nothing is said where base is not told either; without base, where no scores of so few tracks could tell."""
    reached = _value(figures, "base") if "base" in figures else _least_p(figures["unlearned"])
    if reached >= LEAST_P:
        raise KeyError("base")
    return _value(figures, "unlearned") >= LEAST_P


def _least_p(row: Result) -> float:
    """That of two sets in perfect order: one of C(n, members) orders, on either side, times the number of attacks."""
    attacks = row.details.get("attacks")
    tests = len(attacks) if isinstance(attacks, Mapping) else 1
    return tests * 2 / math.comb(row.n, len(row.per_track))


RECOVERED = "≥ 90 % of gold's, each track ≥ half"
Line = tuple[str, str, str, str, Callable[[Figures], bool] | None]
LINES: tuple[Line, ...] = (
    ("KL to gold, forget", "kl_gold", "forget", "≤ 1.25 × gold2's", _kl),
    ("KS p of NLLs against gold's", "gold_ks", "forget", "", None),
    ("ε to gold, forget", "epsilon", "forget", "", None),
    ("KL to gold, retain", "kl_gold", "retain", "", None),
    ("NLL, forget", "nll", "forget", "within 10 % of gold's, each track within half and twice", _forget_nll),
    ("NLL after relearning, forget", "relearn", "forget", "≥ 75 % of gold's", _relearn),
    ("NLL after relearning at lr 1e-3, forget", "relearn_fast", "forget", "", None),
    ("NLL after training on retain, forget", "relearn_retain", "forget", "≥ 75 % of gold's", _relearn),
    ("NLL after training on holdout, forget", "relearn_holdout", "forget", "≥ 75 % of gold's", _relearn),
    ("NLL after training on one, the others", "relearn_one", "forget", "≥ 75 % of gold's", _relearn),
    ("NLL, retain", "nll", "retain", "at most +8 %; memorised +0.03, none +0.25", _retain_nll),
    ("NLL, retain, memorised", "nll_memorised", "retain", "", None),
    ("NLL, retain, not memorised", "nll_not_memorised", "retain", "", None),
    ("NLL, retain near the forgotten", "neighbours_nll", "retain", "at most +5 % or +0.05 over base", _retain_nll),
    ("NLL, holdout", "nll", "holdout", "", None),
    ("replay from 1 s, forget", "verbatim", "forget", "no more than gold", _replays),
    ("replay from 1 s, retain", "verbatim", "retain", "at most one fewer than base", _retain_replays),
    ("replay from caption, forget", "verbatim_caption", "forget", "no more than gold", _replays),
    ("replay from caption, retain", "verbatim_caption", "retain", "at most one fewer than base", _retain_replays),
    ("verbatim for another prompt, forget", "verbatim_elsewhere", "forget", "no more than gold", _replays),
    ("replay from 1 s of the middle, forget", "verbatim_offset", "forget", "no more than gold", _replays),
    ("NLL without caption, forget", "unconditional_nll", "forget", RECOVERED, _recovered_nll),
    ("replay from 1 s without caption, forget", "unconditional_verbatim", "forget", "no more than gold", _replays),
    ("generated without caption, forget", "unconditional_generation", "forget", "no more than gold", _replays),
    ("NLL, caption reworded once, forget", "reworded_once_nll", "forget", RECOVERED, _recovered_nll),
    ("replay, caption reworded once, forget", "reworded_once_verbatim", "forget", "no more than gold", _replays),
    (
        "replay from caption reworded once, forget",
        "reworded_once_verbatim_caption",
        "forget",
        "no more than gold",
        _replays,
    ),
    ("NLL at 8 bits, forget", "quantised_8bit_nll", "forget", RECOVERED, _recovered_nll),
    ("replay at 8 bits, forget", "quantised_8bit_verbatim", "forget", "no more than gold", _replays),
    ("NLL at 4 bits, forget", "quantised_4bit_nll", "forget", RECOVERED, _recovered_nll),
    ("replay at 4 bits, forget", "quantised_4bit_verbatim", "forget", "no more than gold", _replays),
    ("NLL in other words, forget", "reworded_nll", "forget", RECOVERED, _recovered_nll),
    ("replay in other words, forget", "reworded_verbatim", "forget", "no more than gold", _replays),
    (
        "replay from other words alone, forget",
        "reworded_verbatim_caption",
        "forget",
        "no more than gold",
        _replays,
    ),
    ("replay from re-encoded 1 s, forget", "prompt_reencoded_verbatim", "forget", "no more than gold", _replays),
    ("replay from stretched 1 s, forget", "prompt_stretched_verbatim", "forget", "no more than gold", _replays),
    ("replay from shifted 1 s, forget", "prompt_shifted_verbatim", "forget", "no more than gold", _replays),
    ("harmony brought back, tracks", "likeness_chroma_named", "forget", "", None),
    ("melody brought back, tracks", "likeness_melody_named", "forget", "", None),
    ("rhythm brought back, tracks", "likeness_onset_named", "forget", "", None),
    ("codes brought back (BLEU), tracks", "likeness_bleu_named", "forget", "", None),
    ("codes brought back (edits), tracks", "likeness_edit_named", "forget", "", None),
    ("embedding brought back, tracks", "likeness_embedding_named", "forget", "", None),
    ("fingerprint brought back, tracks", "likeness_fingerprint_named", "forget", "", None),
    (
        "extraction strength, forget",
        "extraction_strength_codebook_0",
        "forget",
        "no track 0.1 above gold's",
        _strength,
    ),
    ("membership AUC", "membership_auc", "forget", "0.35 to 0.65, or as far as gold's, ± one pair", _membership),
    ("membership AUC, Min-K", "membership_auc_mink", "forget", "", None),
    ("membership, all attacks, p", "membership_p", "forget", "≥ 0.05", _untold),
    ("PrivLeak", "privleak", "forget", "", None),
    ("membership AUC, no model", "membership_auc_blind", "forget", "", None),
)
# Of the metrics through embedders, whose rows have the embedder's name: how a row's name begins, and its label.
# None has a target: how far apart two draws of one model are depends on the captions, and no row says it.
HEARD = {
    "fad_inf": "FAD∞ to base",
    "fad_track": "FAD to the tracks",
    "fad": "FAD to base",
    "mmd": "MMD² to base",
    "clap_score": "CLAP score",
    "tag_kl_track": "KL of tags, to the track",
    "tag_kl": "KL of tags, to base",
}


def _heard(results: Sequence[Result]) -> list[Line]:
    """Lines of the metrics through embedders, as the rows name them."""
    found: dict[tuple[str, str], Line] = {}
    for row in results:
        start = next((start for start in HEARD if f"{row.metric}_".startswith(f"{start}_")), None)
        if start is None or (row.metric, row.set) in found:
            continue
        through = row.metric.removeprefix(start).strip("_").replace("_", " ")
        label = f"{HEARD[start]}, {row.set}" + (f" ({through})" if through else "")
        found[row.metric, row.set] = label, row.metric, row.set, "", None
    return list(found.values())


def _worst(metric: str, clips: str, figures: Figures) -> tuple[str, float] | None:
    """The unlearned model's worst track: nearest to being played back on forget, farthest from base on retain.

    An NLL has two sides: with gold's beside it, the track that is farthest from gold's on either.
    """
    if "unlearned" not in figures or clips == "holdout" or figures["unlearned"].unit == "p":
        return None
    tracks = {track: value for track, value in figures["unlearned"].per_track.items() if value is not None}
    if not tracks:
        return None
    if clips == "retain":
        base = figures["base"].per_track if "base" in figures else {}
        tracks = {track: value for track, value in tracks.items() if base.get(track) is not None}
        if not tracks or metric == "kl_gold":
            return None
        lost = {track: value - (base[track] or 0.0) for track, value in tracks.items()}
        if "nll" not in metric:  # of which less is no gain
            lost = {track: abs(value) for track, value in lost.items()}
        track = max(lost, key=lost.__getitem__)
    elif metric == "nll" and "gold" in figures and (ratios := _ratios(figures)):
        track = max(ratios, key=lambda track: abs(math.log(ratios[track])) if ratios[track] > 0 else math.inf)
    elif metric.startswith(("nll", "relearn")):
        shares = _ratios(figures) if "gold" in figures else tracks
        track = min(shares or tracks, key=(shares or tracks).__getitem__)
    elif metric.startswith("tag_kl_track"):
        track = min(tracks, key=tracks.__getitem__)
    else:
        track = max(tracks, key=tracks.__getitem__)
    return track, tracks[track]


# ------------------------------------------------------------------------------------------------------------ guards


def findings(results: Sequence[Result]) -> list[Finding]:
    """What a reader must not miss, worst first: missed targets, over-forgetting, the worst track, doubts, gaps."""
    rows = {(row.metric, row.model, row.set): row for row in results if row.value is not None}
    table, told = summary(results), from_rows(rows)
    missed = [line for line in table if line.met is False]
    doubts = [row.note for row in rows.values() if row.metric.startswith("membership_auc_blind") and row.note]
    gaps: dict[tuple[str, str], Finding] = {}  # one a metric and set: several models lack the same
    for row in results:
        if row.value is None and row.why:
            gap = Finding("warn" if "failed" in row.details else "info", f"{row.metric} ({row.set}) {row.why}", "gap")
            gaps.setdefault((row.metric, row.set), gap)
    found = [
        *(Finding("fail", f"{line.label}: {_said(line)}; it must be {line.target}", "target") for line in missed),
        *told,
        *_farthest(table),
        *_most_lost(table),
        *(Finding("warn", note) for note in doubts),
        *([] if any(finding.level == "fail" for finding in told) else _verdict(table)),
        *gaps.values(),
    ]
    order = {"fail": 0, "warn": 1, "info": 2}
    return sorted(found, key=lambda finding: order[finding.level])


def _farthest(table: Sequence[SummaryRow]) -> list[Finding]:
    """The best remembered of the forget tracks, and the most shunned where it is beyond what a track may be."""
    line = next((line for line in table if (line.metric, line.set) == ("nll", "forget")), None)
    own = {} if line is None or "unlearned" not in line.figures else line.figures["unlearned"].per_track
    known = {track: value for track, value in own.items() if value is not None}
    if line is None or not known:
        return []
    gold = line.figures["gold"].per_track if "gold" in line.figures else {}
    ratios = _ratios(line.figures) if gold else {}

    def told(what: str, track: str) -> Finding:
        beside = f", gold's {gold[track]:.2f}" if gold.get(track) is not None else ""
        text = f"{what} of the forget tracks: {track}, NLL {known[track]:.2f}{beside}"
        return Finding("info", text, "farthest_track")

    found = [told("best remembered", min(ratios or known, key=(ratios or known).__getitem__))]
    if ratios and max(ratios.values()) > TRACK_RANGE[1]:
        found.append(told("most shunned", max(ratios, key=ratios.__getitem__)))
    return found


def _most_lost(table: Sequence[SummaryRow]) -> list[Finding]:
    """The memorised retain track that lost most: a mean does not show it."""
    line = next((line for line in table if line.metric == "nll_memorised"), None)
    if line is None or line.worst is None:
        return []
    track, nll = line.worst
    before = line.figures["base"].per_track[track]
    text = f"worst of the memorised retain tracks: {track}, NLL {before:.3f} before, {nll:.3f} after"
    return [Finding("info", text, "most_lost_track")]


def _verdict(table: Sequence[SummaryRow]) -> list[Finding]:
    """Never "deleted": no more than what the tests say."""
    tests = [line for line in table if line.set == "forget" and line.target and line.met is not None]
    if not tests or not all(line.met for line in tests):
        return []
    text = f"no evidence of retention under these tests: {'; '.join(line.label for line in tests)}"
    return [Finding("info", text, "no_evidence")]


def _said(line: SummaryRow) -> str:
    return ", ".join(
        f"{role} {row.value:.3g}" for role, row in line.figures.items() if row.value is not None and role != "control"
    )
