"""Findings: what a reader of an evaluation must not miss, in sentences."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from encore.api import Result
from encore.results.golds import Rows, golds_that_know, held_out, listed, memorised
from encore.results.rules import LEAST_P, NLL_SLACK, TRACK_RANGE, ratios
from encore.results.targets import SummaryRow, spec_of, summary

RECOVERED_SHARE = 0.5  # of the plain NLL
EPSILON_NOISE = 2.0  # times the ε between two golds


@dataclass(frozen=True)
class Finding:
    """A sentence a reader must not miss.

    Args:
        level: `fail`: a target is missed; `warn`: figures must be read with care; `info`: neither.
        text: the sentence.
        code: what kind of finding it is, for programs, which must not search the sentence.
    """

    level: Literal["fail", "warn", "info"]
    text: str
    code: Literal[
        "", "target", "verbatim", "attacked_nll", "retain_lost", "similar", "epsilon", "utility", "artefacts",
        "over_forgotten", "nothing_to_forget", "no_evidence", "gap", "farthest_track", "most_lost_track", "model_free",
        "gold_knows", "not_finite",
    ] = field(default="", compare=False)  # fmt: skip


def findings(results: Sequence[Result]) -> list[Finding]:
    """All findings, worst first."""
    rows = {(row.metric, row.model, row.set): row for row in results if row.value is not None}
    table, known = summary(results), golds_that_know(rows)
    against = [
        *_not_finite(results), *_gold_knows(known), *_nothing_to_forget(rows, known), *_without_gold(table, rows),
        *_retain_lost(rows), *_similar_features(results), *_similar_copies(rows), *_epsilon(rows),
        *_over_forgotten(rows, known), *_utility(rows), *_artefacts(rows),
    ]  # fmt: skip
    sentences = [
        *_missed(table), *against, *_farthest(table), *_most_lost(table), *_model_free(rows),
        *([] if any(_against(finding) for finding in against) else _no_evidence(table)), *_gaps(results),
    ]  # fmt: skip
    order = {"fail": 0, "warn": 1, "info": 2}
    return sorted(sentences, key=lambda finding: order[finding.level])


def _against(finding: Finding) -> bool:
    return finding.level == "fail" or finding.code == "gold_knows"


def _value(row: Result) -> float:
    return row.value if row.value is not None else 0.0  # rows without a figure are not among them


def _missed(table: Sequence[SummaryRow]) -> Iterator[Finding]:
    for line in table:
        if line.met is False:
            figures = ", ".join(f"{role} {row.value:.3g}" for role, row in line.measured.items() if role != "control")
            yield Finding("fail", f"{line.label}: {figures}; it must be {line.target}", "target")


def _without_gold(table: Sequence[SummaryRow], rows: Rows) -> Iterator[Finding]:
    """Without a gold to compare with, or beside one that knows the tracks: tracks that are generated verbatim, as
    held-out music is not, are remembered; tracks whose NLL falls far under an attack were only suppressed."""
    plain = rows.get(("nll", "unlearned", "forget"))
    for line in table:
        row = line.measured.get("unlearned")
        if row is None or line.set != "forget" or line.met is False or "gold" in line.measured.keys() - line.no_golds:
            continue
        how = line.label.removesuffix(", forget")
        if line.spec.judge == "verbatim" and row.value:
            held_out = rows.get((row.metric, "unlearned", "holdout"))
            if held_out is None or _value(row) > _value(held_out):
                beside = f" (held-out: {_value(held_out):.0%})" if held_out is not None else ""
                text = f"{round(_value(row) * row.n)} of {row.n} forget tracks are still generated {how}{beside}"
                yield Finding("fail", text, "verbatim")
        elif line.metric == "nll" and line.no_golds and (known := memorised(row)):
            text = f"{len(known)} of {row.n} forget tracks still have the NLL of memorised ones: {listed(known)}"
            yield Finding("fail", text, "verbatim")
        elif line.spec.judge == "attacked_nll" and plain is not None:
            pairs = [(value, plain.per_track.get(track)) for track, value in row.per_track.items()]
            low = [value for value, usual in pairs if value is not None and usual and value < RECOVERED_SHARE * usual]
            if low:
                text = f"{len(low)} of {row.n} forget tracks have less than half of their plain NLL: {how} "
                yield Finding("fail", f"{text}{_value(row):.2f}, plain {_value(plain):.2f}", "attacked_nll")


def _retain_lost(rows: Rows) -> Iterator[Finding]:
    """A model that knows its retain tracks no better than held-out music has not forgotten: it is ruined."""
    retain, holdout = rows.get(("nll", "unlearned", "retain")), rows.get(("nll", "unlearned", "holdout"))
    if retain is None or holdout is None or _value(retain) < (1 - NLL_SLACK) * _value(holdout):
        return
    before, held_out = (rows.get(("nll", "base", clips)) for clips in ("retain", "holdout"))
    if before is not None and held_out is not None and _value(before) >= (1 - NLL_SLACK) * _value(held_out):
        return  # base knew them no better
    text = f"the NLL of retain is {_value(retain):.2f}, that of held-out music {_value(holdout):.2f}: retain is lost"
    yield Finding("fail" if before is not None else "warn", text, "retain_lost")


def _similar_features(results: Sequence[Result]) -> Iterator[Finding]:
    """The courts' question: does a simple prompt recover harmony, melody, rhythm? Two of them in one generation do."""
    features: dict[tuple[str, str], list[str]] = {}
    of_gold: set[str] = set()
    for row in results:
        above = row.details.get("above")
        spec = spec_of(f"{row.metric}_flagged", row.set)
        if not isinstance(above, (list, tuple)) or spec is None or spec.similarity != "feature":
            continue
        for track, prompt, *_ in above:
            if row.model == "gold":
                of_gold.add(str(track))
            elif row.model == "unlearned":
                features.setdefault((str(track), str(prompt)), []).append(spec.short)
    for (track, prompt), names in sorted(features.items()):
        if len(names) > 1 and track not in of_gold:
            yield Finding("warn", f"a simple prompt recovers {' and '.join(names)} of {track} ({prompt})", "similar")


def _similar_copies(rows: Rows) -> Iterator[Finding]:
    """Tracks whose codes or fingerprint a simple prompt recovers, and gold does not.

    Chance flags a track now and then: it takes two kinds of similarity that flag it, or one that flags more tracks
    than chance does. The k most similar of F forget and H holdout tracks are all of forget by chance in C(F, k) of
    C(F + H, k) cases.
    """
    kinds: dict[str, list[str]] = {}
    many: set[str] = set()
    for (metric, model, clips), row in rows.items():
        spec = spec_of(metric, clips)
        if spec is None or spec.similarity != "copy" or model != "unlearned":
            continue
        tracks = _flagged(row) - _flagged(rows.get((metric, "gold", clips)))
        for track in tracks:
            kinds.setdefault(track, []).append(spec.short)
        held_out = row.details.get("holdout_tracks")
        if isinstance(held_out, int) and math.comb(row.n, len(tracks)) < LEAST_P * math.comb(
            row.n + held_out, len(tracks)
        ):
            many |= tracks
    for track, names in sorted(kinds.items()):
        if len(names) > 1 or track in many:
            yield Finding("warn", f"a simple prompt recovers {track}, by its {' and its '.join(names)}", "similar")


def _flagged(row: Result | None) -> set[str]:
    tracks = row.details.get("flagged") if row is not None else None
    return {str(track) for track in tracks} if isinstance(tracks, (list, tuple)) else set()


def _epsilon(rows: Rows) -> Iterator[Finding]:
    row, noise = rows.get(("epsilon", "unlearned", "forget")), rows.get(("epsilon", "gold2", "forget"))
    if row is not None and noise is not None and _value(row) > EPSILON_NOISE * _value(noise):
        text = f"single tokens tell it from gold: ε {_value(row):.2f} on forget, {_value(noise):.2f} between golds"
        yield Finding("warn", text, "epsilon")


def _utility(rows: Rows) -> Iterator[Finding]:
    """Generations that fit the captions of retain less than chance among base's tracks explains."""
    for (metric, model, clips), row in rows.items():
        base = rows.get((metric, "base", clips))
        if not metric.startswith("clap_score") or (model, clips) != ("unlearned", "retain") or base is None:
            continue
        if base.low is not None and _value(row) < base.low:
            text = f"generations fit the captions of retain less: {metric} {_value(row):.2f}, base's {_value(base):.2f}"
            yield Finding("warn", f"{text} ({base.low:.2f} to {base.high:.2f})", "utility")


def _artefacts(rows: Rows) -> Iterator[Finding]:
    """Generations that are noise, silent, clipped or a loop, as none of base's is."""
    for clips in ("retain", "forget"):
        row = rows.get(("artefacts", "unlearned", clips))
        flagged = row.details.get("flagged") if row is not None else None
        kinds: dict[str, set[str]] = {}
        for track, kind, *_ in flagged if isinstance(flagged, (list, tuple)) else ():
            kinds.setdefault(str(kind), set()).add(str(track))
        for kind, tracks in sorted(kinds.items()):
            yield Finding("warn", f"{kind} in generations for captions of {clips}: {listed(tracks)}", "artefacts")


def _not_finite(results: Sequence[Result]) -> Iterator[Finding]:
    """A model whose likelihoods are not finite generates nothing: its missing figures are no success."""
    sets = [
        row.set for row in results
        if row.model == "unlearned" and row.value is None
        and ((row.metric == "nll" and row.per_track) or "not_finite" in row.details)
    ]  # fmt: skip
    if sets:
        text = f"the likelihoods of the unlearned model are not finite ({', '.join(dict.fromkeys(sets))})"
        yield Finding("fail", f"{text}: the model is damaged, do not use it", "not_finite")


def _gold_knows(known: Mapping[str, str]) -> Iterator[Finding]:
    for gold, signs in known.items():
        yield Finding("warn", f"{gold} {signs}, so it is not a valid gold for these tracks", "gold_knows")


def _nothing_to_forget(rows: Rows, known: Collection[str]) -> Iterator[Finding]:
    """Base gives no sign of having learnt the tracks: whatever follows is no achievement."""
    if memorised(rows.get(("nll", "base", "forget"))):
        return
    signs = {
        name: row
        for name, metric in (
            ("verbatim from 1 s", "verbatim"), ("verbatim from caption", "verbatim_caption"),
            ("membership", "membership_auc"),
        )
        if (row := rows.get((metric, "base", "forget"))) is not None
    }  # fmt: skip
    if signs and not any(_shows(row, rows, known) for row in signs.values()):
        text = f"nothing measurable to forget: base shows no signal under {', '.join(signs)}"
        yield Finding("warn", text, "nothing_to_forget")


def _shows(row: Result, rows: Rows, known: Collection[str]) -> bool:
    """An AUC that chance does not explain, or more verbatim generations than gold's, or else of held-out tracks.

    A gold that knows the tracks itself explains none of them.
    """
    if row.unit != "share":
        return (row.low or 0.0) > 0.5
    gold = rows.get((row.metric, "gold", "forget")) if "gold" not in known else None
    return _value(row) > (_value(gold) if gold is not None else held_out(row, rows))


def _over_forgotten(rows: Rows, known: Collection[str]) -> Iterator[Finding]:
    gap, reference = rows.get(("nll_gap_gold", "unlearned", "forget")) if "gold" not in known else None, "gold's"
    size = _value(gap) if gap is not None else 0.0
    if gap is None:
        row, holdout = rows.get(("nll", "unlearned", "forget")), rows.get(("nll", "unlearned", "holdout"))
        if row is not None and holdout is not None and holdout.value:
            size, reference = _value(row) / holdout.value - 1, "that of held-out music (there is no gold for them)"
    if size > NLL_SLACK:
        text = f"over-forgotten: the NLL of forget is {size:.0%} above {reference}, which reveals the tracks too"
        yield Finding("warn", text, "over_forgotten")


def _farthest(table: Sequence[SummaryRow]) -> Iterator[Finding]:
    """The best remembered of the forget tracks, and the most suppressed where it is beyond what a track may be."""
    line = next((line for line in table if (line.metric, line.set) == ("nll", "forget")), None)
    row = line.figures.get("unlearned") if line is not None else None
    known = {track: value for track, value in (row.per_track if row is not None else {}).items() if value is not None}
    if line is None or not known:
        return
    gold = line.figures["gold"].per_track if "gold" in line.figures.keys() - line.no_golds else {}
    relative = ratios(line.figures) if gold else {}

    def finding(what: str, track: str) -> Finding:
        beside = f", gold's {gold[track]:.2f}" if gold.get(track) is not None else ""
        text = f"{what} of the forget tracks: {track}, NLL {known[track]:.2f}{beside}"
        return Finding("info", text, "farthest_track")

    yield finding("best remembered", min(relative or known, key=(relative or known).__getitem__))
    if relative and max(relative.values()) > TRACK_RANGE[1]:
        yield finding("most suppressed", max(relative, key=relative.__getitem__))


def _most_lost(table: Sequence[SummaryRow]) -> Iterator[Finding]:
    """The memorised retain track that lost most: a mean does not show it."""
    line = next((line for line in table if line.metric == "nll_memorised"), None)
    if line is not None and line.worst is not None:
        track, nll = line.worst
        before = line.figures["base"].per_track[track]
        text = f"worst of the memorised retain tracks: {track}, NLL {before:.3f} before, {nll:.3f} after"
        yield Finding("info", text, "most_lost_track")


def _model_free(rows: Rows) -> Iterator[Finding]:
    for row in rows.values():
        if row.metric.startswith("membership_auc_baseline") and row.note:
            yield Finding("warn", row.note, "model_free")


def _no_evidence(table: Sequence[SummaryRow]) -> Iterator[Finding]:
    """Never "deleted": no more than what the tests say."""
    tests = [line for line in table if line.set == "forget" and line.target and line.met is not None]
    if tests and all(line.met for line in tests):
        text = f"no evidence of retention under these tests: {'; '.join(line.label for line in tests)}"
        yield Finding("info", text, "no_evidence")


def _gaps(results: Sequence[Result]) -> Iterator[Finding]:
    """One for a metric and set: several models lack the same."""
    seen: set[tuple[str, str]] = set()
    for row in results:
        if row.value is None and row.why and (row.metric, row.set) not in seen:
            seen.add((row.metric, row.set))
            yield Finding("warn" if "failed" in row.details else "info", f"{row.metric} ({row.set}) {row.why}", "gap")
