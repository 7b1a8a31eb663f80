"""What rows of `metrics.json` give away beyond the table of targets: doubts, and models that only look as if."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from encore.api import Result

NLL_SLACK = 0.10  # relative to gold, on both sides
REPLAYS = {
    "verbatim": "caption and 1 s",
    "verbatim_caption": "the caption alone",
    "verbatim_elsewhere": "another prompt",
    "verbatim_offset": "caption and 1 s of the middle",
    "unconditional_verbatim": "1 s without a caption",
    "unconditional_generation": "nothing at all",
    "reworded_once_verbatim": "1 s with the caption reworded once",
    "reworded_once_verbatim_caption": "the caption reworded once",
    "quantised_8bit_verbatim": "1 s at 8 bits",
    "quantised_4bit_verbatim": "1 s at 4 bits",
    "reworded_verbatim": "1 s in other words",
    "reworded_verbatim_caption": "other words alone",
    "prompt_reencoded_verbatim": "a re-encoded second",
    "prompt_stretched_verbatim": "a stretched second",
    "prompt_shifted_verbatim": "a shifted second",
}
RECOVERED = {
    "unconditional_nll": "without a caption",
    "reworded_once_nll": "with the caption reworded once",
    "reworded_nll": "in other words",
    "quantised_8bit_nll": "at 8 bits",
    "quantised_4bit_nll": "at 4 bits",
}
RECOVERED_SHARE = 0.5  # of the plain NLL
HEARD = {"chroma": "harmony", "melody": "melody", "onset": "rhythm"}
COPIED = {"bleu": "n-grams of codes", "edit": "order of codes", "fingerprint": "audio fingerprint"}
LEAST_P = 0.05
EPSILON_NOISE = 2.0  # times the ε between two golds

Rows = Mapping[tuple[str, str, str], Result]  # metric, model, set -> row with a figure


@dataclass(frozen=True)
class Finding:
    """A sentence a reader must not miss.

    Args:
        level: `fail`: a target is missed; `warn`: figures must be read with care; `info`: neither.
        text: the sentence.
        code: what kind of finding it is, for programs, which must not search the sentence: `target` (a missed line of
            the table), `nothing_to_forget`, `no_evidence` (every test passed), `gap` (a row without a figure),
            `farthest_track`; empty for all others.
    """

    level: Literal["fail", "warn", "info"]
    text: str
    code: str = field(default="", compare=False)


def from_rows(rows: Rows) -> list[Finding]:
    """What can be said without the table."""
    return [
        *_nothing_to_forget(rows),
        *_replays_without_gold(rows),
        *_recovered_without_gold(rows),
        *_broken(rows),
        *_brought_back(rows),
        *_copied(rows),
        *_told_by_a_token(rows),
        *_overshoot(rows),
        *_fits_less(rows),
    ]


def _value(row: Result) -> float:
    return row.value if row.value is not None else 0.0  # rows without a figure are not among them


def _replays_without_gold(rows: Rows) -> list[Finding]:
    """Where there is no gold to compare with, a forget track that replays is remembered: unheard music does not."""
    found = []
    for metric, source in REPLAYS.items():
        own, unheard = rows.get((metric, "unlearned", "forget")), rows.get((metric, "unlearned", "holdout"))
        if own is None or (metric, "gold", "forget") in rows or not own.value:
            continue
        if unheard is not None and _value(own) <= _value(unheard):
            continue
        beside = f", {_value(unheard):.0%} of unheard ones" if unheard is not None else ""
        text = f"{round(_value(own) * own.n)} of {own.n} forget tracks still replay from {source}{beside}"
        found.append(Finding("fail", text))
    return found


def _recovered_without_gold(rows: Rows) -> list[Finding]:
    """Where there is no gold: tracks that cost far less once they are asked for otherwise were only suppressed."""
    plain = rows.get(("nll", "unlearned", "forget"))
    found = []
    for metric, how in RECOVERED.items():
        own = rows.get((metric, "unlearned", "forget"))
        if own is None or plain is None or (metric, "gold", "forget") in rows:
            continue
        pairs = [(value, plain.per_track.get(track)) for track, value in own.per_track.items()]
        low = [value for value, usual in pairs if value is not None and usual and value < RECOVERED_SHARE * usual]
        if low:
            text = f"{len(low)} of {own.n} forget tracks have less than half of their usual NLL {how}"
            found.append(Finding("fail", f"{text} ({_value(own):.2f}, else {_value(plain):.2f})"))
    return found


def _broken(rows: Rows) -> list[Finding]:
    """A model that knows its retain tracks no better than unheard music has not forgotten: it is ruined."""
    own, unheard = rows.get(("nll", "unlearned", "retain")), rows.get(("nll", "unlearned", "holdout"))
    if own is None or unheard is None or _value(own) < (1 - NLL_SLACK) * _value(unheard):
        return []
    base = [rows.get(("nll", "base", clips)) for clips in ("retain", "holdout")]
    kept, strange = base
    if kept is not None and strange is not None and _value(kept) >= (1 - NLL_SLACK) * _value(strange):
        return []  # base knew no better
    text = f"retain costs {_value(own):.2f}, as much as unheard music ({_value(unheard):.2f}): what should stay is gone"
    return [Finding("fail" if kept is not None else "warn", text)]


def _brought_back(rows: Rows) -> list[Finding]:
    """The courts' question: does a simple prompt bring back harmony, melody, rhythm? Two of three in one play do."""
    found: dict[tuple[str, str], list[str]] = {}
    of_gold: set[str] = set()
    for kind, name in HEARD.items():
        for model in ("unlearned", "gold"):
            row = rows.get((f"likeness_{kind}", model, "forget"))
            above = row.details.get("above") if row is not None else None
            for pair in above if isinstance(above, (list, tuple)) else ():
                track, asked = str(pair[0]), str(pair[1])
                if model == "gold":
                    of_gold.add(track)
                else:
                    found.setdefault((track, asked), []).append(name)
    return [
        Finding("warn", f"a simple prompt brings back the {' and '.join(names)} of {track} ({asked})")
        for (track, asked), names in sorted(found.items())
        if len(names) > 1 and track not in of_gold
    ]


def _copied(rows: Rows) -> list[Finding]:
    """Tracks whose codes or fingerprint a simple prompt brings back, and gold does not.

    Chance names a track now and then: it takes two kinds of likeness that name it, or one that names more tracks than
    chance does. The k most alike of F forget and H holdout tracks are all of forget by chance in C(F, k) of C(F + H, k)
    cases.
    """
    found: dict[str, list[str]] = {}
    many: set[str] = set()
    for kind, name in COPIED.items():
        row = rows.get((f"likeness_{kind}_named", "unlearned", "forget"))
        if row is None:
            continue
        own = _named(row) - _named(rows.get((f"likeness_{kind}_named", "gold", "forget")))
        for track in own:
            found.setdefault(track, []).append(name)
        unheard = row.details.get("holdout_tracks")
        if isinstance(unheard, int) and math.comb(row.n, len(own)) < LEAST_P * math.comb(row.n + unheard, len(own)):
            many |= own
    return [
        Finding("warn", f"a simple prompt brings back {track}, by its {' and its '.join(names)}")
        for track, names in sorted(found.items())
        if len(names) > 1 or track in many
    ]


def _named(row: Result | None) -> set[str]:
    named = row.details.get("named") if row is not None else None
    return {str(track) for track in named} if isinstance(named, (list, tuple)) else set()


def _told_by_a_token(rows: Rows) -> list[Finding]:
    own, noise = rows.get(("epsilon", "unlearned", "forget")), rows.get(("epsilon", "gold2", "forget"))
    if own is None or noise is None or _value(own) <= EPSILON_NOISE * _value(noise):
        return []
    text = f"single tokens tell it from gold: ε {_value(own):.2f} on forget, {_value(noise):.2f} between golds"
    return [Finding("warn", text)]


def _fits_less(rows: Rows) -> list[Finding]:
    """What it plays fits the captions of the music to keep less than chance among base's tracks explains."""
    found = []
    for (metric, model, clips), row in rows.items():
        base = rows.get((metric, "base", clips))
        if not metric.startswith("clap_score") or (model, clips) != ("unlearned", "retain") or base is None:
            continue
        if base.low is not None and _value(row) < base.low:
            text = (
                f"what it plays fits the captions of retain less: {metric} {_value(row):.2f}, base's {_value(base):.2f}"
            )
            found.append(Finding("warn", f"{text} ({base.low:.2f} to {base.high:.2f})"))
    return found


def _nothing_to_forget(rows: Rows) -> list[Finding]:
    """Base gives no sign of having learnt the tracks: whatever follows is no achievement."""
    signs = {
        "replay from 1 s": rows.get(("verbatim", "base", "forget")),
        "replay from the caption": rows.get(("verbatim_caption", "base", "forget")),
        "membership": rows.get(("membership_auc", "base", "forget")),
    }
    seen = {name: row for name, row in signs.items() if row}
    if not seen or any(_shown(row, rows) for row in seen.values()):
        return []
    text = f"nothing measurable to forget: base shows no signal under {', '.join(seen)}"
    return [Finding("warn", text, "nothing_to_forget")]


def _shown(row: Result, rows: Rows) -> bool:
    """An AUC that chance does not explain, or more replays than of what nobody heard: gold's, or else of holdout."""
    if row.unit != "share":
        return (row.low or 0.0) > 0.5
    unheard = rows.get((row.metric, "gold", "forget")) or rows.get((row.metric, "base", "holdout"))
    return _value(row) > (_value(unheard) if unheard is not None else 0.0)


def _overshoot(rows: Rows) -> list[Finding]:
    gap = rows.get(("nll_gap_gold", "unlearned", "forget"))
    if gap is not None:
        size, reference = gap.value or 0.0, "gold's"
    else:
        own, unseen = rows.get(("nll", "unlearned", "forget")), rows.get(("nll", "unlearned", "holdout"))
        if own is None or unseen is None or not unseen.value:
            return []
        size, reference = (
            (own.value or 0.0) / unseen.value - 1,
            "that of unseen music (there is no gold to compare with)",
        )
    if size <= NLL_SLACK:
        return []
    return [
        Finding("warn", f"over-forgotten: the NLL on forget is {size:.0%} above {reference}, which tells on it too")
    ]
