"""The report's first page in words that somebody can read who knows music and no machine learning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from encore.api import Result
from encore.metrics.findings import HEARD
from encore.metrics.summary import SummaryRow, findings, summary
from encore.report.files import RunFiles

PLAIN = {
    ("kl_gold", "forget"): "likeness to a model that never heard the tracks",
    ("nll", "forget"): "how surprising the tracks are to it",
    ("relearn", "forget"): "whether a little training brings the tracks back",
    ("relearn_retain", "forget"): "whether training on other music brings the tracks back",
    ("relearn_holdout", "forget"): "whether training on music it never heard brings the tracks back",
    ("relearn_one", "forget"): "whether training on one of the tracks brings the others back",
    ("verbatim", "forget"): "whether it plays the tracks on from their first second",
    ("verbatim_caption", "forget"): "whether their descriptions alone make it play the tracks",
    ("extraction_strength_codebook_0", "forget"): "how much of a track it must hear to play the rest",
    ("verbatim_elsewhere", "forget"): "whether it generates the tracks when it is asked for something else",
    ("verbatim_offset", "forget"): "whether it continues the tracks from a second of their middle",
    ("unconditional_nll", "forget"): "how surprising the tracks are to it without a description",
    ("unconditional_verbatim", "forget"): "whether it continues the tracks without a description",
    ("unconditional_generation", "forget"): "whether it generates the tracks when it is asked for nothing",
    ("reworded_once_nll", "forget"): "how surprising the tracks are to it with a slip in their description",
    ("reworded_once_verbatim", "forget"): "whether it continues the tracks with a slip in their description",
    ("reworded_once_verbatim_caption", "forget"): "whether a description with a slip makes it generate the tracks",
    ("reworded_nll", "forget"): "how surprising the tracks are to it when they are described in other words",
    ("quantised_8bit_nll", "forget"): "how surprising the tracks are to it with its weights rounded to 8 bits",
    ("quantised_4bit_nll", "forget"): "how surprising the tracks are to it with its weights rounded to 4 bits",
    ("quantised_8bit_verbatim", "forget"): "whether it plays them on with its weights rounded to 8 bits",
    ("quantised_4bit_verbatim", "forget"): "whether it plays them on with its weights rounded to 4 bits",
    ("reworded_verbatim", "forget"): "whether it plays them on when they are described in other words",
    ("reworded_verbatim_caption", "forget"): "whether other words alone make it play the tracks",
    ("prompt_reencoded_verbatim", "forget"): "whether it plays them on from a first second that was compressed",
    ("prompt_stretched_verbatim", "forget"): "whether it plays them on from a first second that is faster or slower",
    ("prompt_shifted_verbatim", "forget"): "whether it plays them on from a first second in another key",
    ("membership_auc", "forget"): "whether an outsider can tell that they were trained on",
    ("membership_p", "forget"): "whether any of several such tests can tell",
    ("nll", "retain"): "how well it still knows the other music",
    ("neighbours_nll", "retain"): "how well it still knows the music closest to the tracks",
    ("verbatim", "retain"): "whether it still plays the other music it knew by heart",
}


@dataclass(frozen=True)
class Verdict:
    """The report in one sentence, the tests it is about, what speaks against it, and the sentences behind it."""

    level: Literal["good", "bad", "open"]
    headline: str
    found: tuple[str, ...]
    tests: tuple[str, ...] = ()
    but: str = ""


def verdict(files: RunFiles) -> Verdict:
    """What the figures come to. It never says "deleted": no test could."""
    table = summary(files.results)
    judged = [line for line in table if line.met is not None]
    about = [line for line in judged if line.set == "forget"]
    missed = [line for line in judged if not line.met]
    traces, damage = (
        [line for line in missed if line.set == "forget"],
        [line for line in missed if line.set != "forget"],
    )
    told = findings(files.results)
    lines = tuple(f"{line.label}:" for line in missed)
    beyond = [one.text for one in told if one.level == "fail" and not one.text.startswith(lines)]
    said = (*_sentences(table, files), *brought_back(files.results))
    if files.run["outcome"].get("collapsed"):
        return Verdict("bad", "The run damaged the rest of the music.", said)
    if any(one.text.startswith("nothing measurable to forget") for one in told):
        return Verdict("open", "There was nothing measurable to forget.", said)
    harm = f"the rest of the music suffered: {'; '.join(_named(damage))}." if damage else ""
    if traces:
        return Verdict(
            "bad",
            f"{len(traces)} of {_tests(about)} of forgetting failed:",
            said,
            _named(traces),
            harm and f"And {harm}",
        )
    if beyond:
        return Verdict("bad", "A finding speaks against this run:", said, tuple(beyond), harm and f"And {harm}")
    if not about:
        return Verdict("open", "No test of forgetting could be judged: there was nothing to compare with.", said)
    headline = f"No evidence of retention under {_tests(about)}:"
    return Verdict("bad" if damage else "good", headline, said, _named(about), harm and f"But {harm}")


def asked(files: RunFiles) -> str:
    """What the run was asked to do, in a sentence or two."""
    run = files.run
    counts, outcome = run["tracks"], run["outcome"]
    model = Path(str(run["model"]["name"])).name
    text = f"The model {model} was to forget {_tracks(counts['forget'])}"
    text += f" and to keep {_tracks(counts['retain'])}." if counts["retain"] else "."
    text += f" The method {run['method']} changed it in {outcome['steps']} steps."
    if counts["holdout"]:
        text += f" {_tracks(counts['holdout']).capitalize()} that it never heard served for comparison."
    return text


def part(files: RunFiles) -> str:
    """Said of a run that was asked for some of its list's tracks; else nothing. Its command names the whole list."""
    counts = files.run["tracks"]
    if counts.get("listed", counts["forget"]) == counts["forget"]:
        return ""
    return (
        f"This run was one of several requests: the list that its command names has {_tracks(counts['listed'])}, and "
        f"this request was for {counts['forget']} of them, those under “Track by track”."
    )


def doubts(files: RunFiles) -> list[str]:
    """What these figures do not prove."""
    models = {row.model for row in files.results}
    unmeasured = [row for row in files.results if row.value is None]
    count = files.run["tracks"]["forget"]
    told = [
        "No test can prove that music was deleted from a model. These look for signs that it is still there, and found "
        "what is said above; a test that is not listed here might find more.",
        f"The figures rest on {_tracks(count)}. Where an interval is given, it says how far chance may reach.",
    ]
    if "gold" not in models:
        told.append(
            "There was no gold, a model trained without the tracks: what the model would be like had it never heard "
            "them is not known, only how it treats other music that it never heard."
        )
    if unmeasured:
        told.append(f"{len(unmeasured)} figures could not be measured; they are listed below with the reason.")
    told.append("It is about these files: another recording, arrangement or transcription of a work is another track.")
    return told


# ------------------------------------------------------------------------------------------------------- sentences


def _sentences(table: Sequence[SummaryRow], files: RunFiles) -> Iterator[str]:
    lines = {(line.metric, line.set): line for line in table}
    for name, say in SENTENCES.items():
        figures = lines[name].figures if name in lines else {}
        known = {role: row for role, row in figures.items() if row.value is not None}
        if {"base", "unlearned"} <= set(known):
            yield say(known, files)


def brought_back(results: Sequence[Result]) -> Iterator[str]:
    """The courts' question in a sentence, where it was measured: of how many tracks a prompt brings back what."""
    rows = {(row.metric, row.model): row for row in results if row.set == "forget" and row.value is not None}
    parts = {kind: rows.get((f"likeness_{kind}_named", "unlearned")) for kind in HEARD}
    if not all(parts.values()):
        return
    tracks = max(row.n for row in parts.values() if row)

    def told(role: str) -> str:
        named = [(word, rows.get((f"likeness_{kind}_named", role))) for kind, word in HEARD.items()]
        return ", ".join(f"the {word} of {_count(row)}" for word, row in named if row)

    before = told("base")
    chances = [row.details.get("chance") for row in parts.values() if row]
    known = [chance for chance in chances if isinstance(chance, float) and chance > 0]
    yield (
        f"Asked in words alone, the model brings back {told('unlearned')} of {_tracks(tracks)}"
        + (f"; before it brought back {before}" if before else "")
        + (f". Chance alone makes about one track in {1 / max(known):.0f} count as that, for each." if known else ".")
    )


def _replays(known: Mapping[str, Result], files: RunFiles) -> str:
    return f"From a track's description and its first second, {_played(known)}."


def _from_caption(known: Mapping[str, Result], files: RunFiles) -> str:
    return f"From the description alone, {_played(known)}."


def _kept(known: Mapping[str, Result], files: RunFiles) -> str:
    return f"Of the music to keep, from description and first second, {_played(known)}."


def _kept_from_caption(known: Mapping[str, Result], files: RunFiles) -> str:
    return f"Of the music to keep, from the description alone, {_played(known)}."


def _played(known: Mapping[str, Result]) -> str:
    after, gold = known["unlearned"], known.get("gold")
    beside = f"; one that never heard the tracks to forget, {_count(gold)}" if gold else ""
    return f"the model played {_count(known['base'])} of {after.n} tracks before and plays {_count(after)} now{beside}"


def _likeness(known: Mapping[str, Result], files: RunFiles) -> str:
    noise = known.get("gold2")
    beside = f"; two such models differ by {number(noise.value)} from each other" if noise else ""
    return (
        "The model's predictions for the tracks differ from those of a model that never heard them by "
        f"{number(known['unlearned'].value)} (before: {number(known['base'].value)}){beside}."
    )


def _relearnt(known: Mapping[str, Result], files: RunFiles) -> str:
    gold = known.get("gold")
    beside = f", that of a model that never heard them to {number(gold.value)}" if gold else ""
    steps = known["unlearned"].details.get("steps")
    return (
        f"After {steps or 'a few'} steps of training on the tracks, the model's surprise at them falls to "
        f"{number(known['unlearned'].value)}{beside} (the model before: {number(known['base'].value)}). "
        "Lower means that they come back."
    )


def _membership(known: Mapping[str, Result], files: RunFiles) -> str:
    return (
        "A test that tells trained tracks from unheard ones by the model's surprise was right in "
        f"{percent(known['base'].value)} of all pairs before and is in {percent(known['unlearned'].value)} now; "
        "guessing gives 50\N{NO-BREAK SPACE}%."
    )


def _cost(known: Mapping[str, Result], files: RunFiles) -> str:
    return (
        f"On the music to keep, the model's surprise ({files.loss}, lower is better) went from "
        f"{number(known['base'].value)} to {number(known['unlearned'].value)}."
    )


def _fits(known: Mapping[str, Result], files: RunFiles) -> str:
    after, itself = known["unlearned"], known.get("none")
    shuffled = after.details.get("shuffled")
    beside = [f"the recordings themselves reach {number(itself.value)}"] if itself else []
    beside += [f"descriptions of other tracks {number(shuffled)}"] if isinstance(shuffled, float) else []
    return (
        "How well what it plays for the music to keep fits the descriptions, as a listening model (a CLAP) scores it, "
        f"went from {number(known['base'].value)} to {number(after.value)}"
        f"{'; ' if beside else ''}{', '.join(beside)}."
    )


SENTENCES: dict[tuple[str, str], Callable[[Mapping[str, Result], RunFiles], str]] = {
    ("verbatim_caption", "forget"): _from_caption,
    ("verbatim", "forget"): _replays,
    ("membership_auc", "forget"): _membership,
    ("relearn", "forget"): _relearnt,
    ("kl_gold", "forget"): _likeness,
    ("verbatim", "retain"): _kept,
    ("verbatim_caption", "retain"): _kept_from_caption,
    ("nll", "retain"): _cost,
    ("clap_score", "retain"): _fits,
    ("clap_score_tiny", "retain"): _fits,
}


def number(value: float | None) -> str:
    """A figure as it is read: three digits, no more."""
    if value is None:
        return "–"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e5):
        return f"{value:.2e}"
    return f"{value:.3f}" if size < 1 else f"{value:.2f}" if size < 100 else f"{value:.0f}"


def percent(share: float | None) -> str:
    """A share in the report's spelling, with a space that does not break."""
    return "–" if share is None else f"{share:.0%}".replace("%", "\N{NO-BREAK SPACE}%")


def _count(row: Result) -> int:
    return round((row.value or 0.0) * row.n)


def _tests(lines: Sequence[SummaryRow]) -> str:
    return f"{len(lines)} test{'s' if len(lines) != 1 else ''}"


def _tracks(count: int) -> str:
    return f"{count} track{'s' if count != 1 else ''}"


def _named(lines: Sequence[SummaryRow]) -> tuple[str, ...]:
    return tuple(PLAIN.get((line.metric, line.set), line.label) for line in lines)
