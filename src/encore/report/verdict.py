"""The report's verdict and explanations, for readers who know music and no machine learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from encore.api import Result
from encore.metrics.memorization.verbatim import MATCH
from encore.report.formatting import percent
from encore.report.run_files import RunFiles
from encore.report.track_chart import best_shares, reproduced
from encore.results.targets import SummaryRow, row_specs


@dataclass(frozen=True)
class Verdict:
    """The report in one line, and its colour. It never says "deleted": no test could show that."""

    level: Literal["good", "bad", "open"]
    headline: str


def verdict(files: RunFiles) -> Verdict:
    """What the figures come to: tests of forgetting first, then of the rest of the music, then warnings."""
    judged = [line for line in files.table if line.met is not None]
    about = [line for line in judged if line.set == "forget"]
    rest = [line for line in judged if line.set != "forget"]
    missed, damaged = ([line for line in lines if not line.met] for lines in (about, rest))
    findings = files.findings
    failures = [finding for finding in findings if finding.level == "fail" and finding.code != "target"]
    harm = f"{len(damaged)} of {_tests(rest, 'of the other music')} failed" if damaged else ""
    if files.run["outcome"].get("collapsed"):
        return Verdict("bad", "The run damaged the rest of the music: do not use this model")
    if missed:
        further = f", with {len(failures)} further finding{_s(failures)} against this model" if failures else ""
        headline = f"{len(missed)} of {_tests(about)} failed{further}: {remains(files) or _first(missed)}"
        return Verdict("bad", headline + (f"; {harm}" if harm else ""))
    if failures:
        headline = remains(files) or f"{len(failures)} finding{_s(failures)} against this model: {failures[0].text}"
        return Verdict("bad", headline[:1].upper() + headline[1:] + (f"; {harm}" if harm else ""))
    if any(finding.code == "gold_knows" for finding in findings):
        known = "Forgetting can't be judged beside this gold: it has memorised the tracks itself"
        return Verdict("bad" if harm else "open", known + (f"; {harm}" if harm else ""))
    if any(finding.code == "nothing_to_forget" for finding in findings):
        nothing = "Nothing measurable to forget: the base model shows no sign of the tracks"
        return Verdict("bad" if harm else "open", nothing + (f"; {harm}" if harm else ""))
    if not about:
        nothing = "No forgetting test could be judged: there is nothing to compare with"
        return Verdict("bad" if harm else "open", nothing + (f"; {harm}" if harm else ""))
    if remains(files):  # of a test that could not be judged
        return Verdict(
            "bad" if harm else "open", f"No test failed, but {remains(files)}" + (f"; {harm}" if harm else "")
        )
    headline = f"No evidence of retention in {len(about)} of {_tests(about)}"
    if harm:
        return Verdict("bad", f"{headline}, but {harm}")
    warnings = [finding for finding in findings if finding.level == "warn"]
    if warnings:
        return Verdict("open", f"{headline}, with {len(warnings)} warning{_s(warnings)}")
    return Verdict("good", headline)


def remains(files: RunFiles) -> str:
    """How many forget tracks are reproduced, as part of a sentence; empty for none."""
    tracks = reproduced(files.results)
    if not tracks:
        return ""
    of = files.run["tracks"]["forget"]
    changed = {row.name for row in row_specs() if row.changed_model}
    plain = [track for track, metrics in tracks.items() if not changed.issuperset(metrics)]
    if plain:
        return f"the model still reproduces {_of(len(plain), of)}"
    return f"with its weights rounded, the model reproduces {_of(len(tracks), of)}"


def task(files: RunFiles) -> str:
    """What the run was to do, in a sentence or two."""
    run = files.run
    counts, outcome = run["tracks"], run["outcome"]
    model = Path(str(run["model"]["name"])).name
    text = f"The model {model} was to forget {_tracks(counts['forget'])}"
    text += f" and to keep {_tracks(counts['retain'])}." if counts["retain"] else "."
    text += f" The method {run['method']} changed it in {outcome['steps']} steps."
    if counts["holdout"]:
        text += f" {_tracks(counts['holdout']).capitalize()} that it was never trained on are used for comparison."
    return text


def part(files: RunFiles) -> str:
    """A note on a run of some of its list's tracks only, since its command names the whole list; empty for others."""
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
    sentences = [
        "No test can prove that music was deleted from a model. These tests look for signs that it is still there; a "
        "test that is not listed here might find more.",
        f"The figures are based on {_tracks(count)}. An interval shows how far chance may move a figure.",
        "They hold for this model with these descriptions. Other prompts, other sampling and other attacks may recover "
        "what these do not.",
    ]
    if "gold" not in models:
        sentences.append(
            "There was no gold, a model trained without the tracks. What the model would be like had it never learned "
            "them is unknown; the tracks are compared with held-out music instead."
        )
    if unmeasured:
        sentences.append(f"Figures that could not be measured: {len(unmeasured)}. They are listed with the reason.")
    sentences.append(
        "The figures are about these files: another recording, arrangement or transcription of a work is another track."
    )
    sentences.append(
        "Figures of two reports compare only if the base model, the tracks, the embedder and Encore's version are the "
        "same."
    )
    return sentences


def glossary(files: RunFiles) -> list[tuple[str, str]]:
    """Six words that a reader needs."""
    return [
        ("gold", "The same model trained from the start without the tracks: what the model should be like now."),
        (
            "held-out",
            "Music that no model here was trained on. It shows how a model behaves on tracks that it does not know.",
        ),
        (
            files.loss,
            "How badly the model predicts a track, on average per token. Near 0: it knows the track."
            if files.loss == "NLL" else
            "How badly the model reconstructs a track. Low: it knows the track.",
        ),
        (
            "verbatim",
            f"The model generates a track, or a passage of it, again: at least {percent(MATCH)} of the tokens (short "
            "pieces of sound) are the same.",
        ),
        (
            "membership test",
            "Can an outsider tell trained tracks from held-out ones by the model's predictions? 0.5 is guessing, 1 is "
            "always right.",
        ),
        (
            "95\N{NO-BREAK SPACE}% interval",
            "Of 100 such ranges, each from other tracks of the same kind, 95 contain the true figure.",
        ),
    ]  # fmt: skip


def audio_note(files: RunFiles, *, originals: bool) -> str:
    """What the audio in the page is: whose sound, and whether the tracks can be recognised in it."""
    if originals:
        return "This file contains the recordings themselves. Share it only with those who may have them."
    note = "The recordings themselves are not in this file; all audio in it was generated by models."
    before = {sample.track for sample in files.samples if sample.role == "base" and sample.set == "forget"}
    if not before:
        return note
    known = best_shares(
        [row for row in files.results if row.metric == "verbatim_caption"], "base"
    )  # the samples are generated from the caption alone
    copies = [track for track in before if known.get(track, 0.0) >= MATCH]
    if not known:
        return f"{note} But the “before” samples may reproduce the tracks: treat them as copies."
    if not copies:
        return f"{note} None of the “before” samples reproduces its track by the verbatim test."
    return (
        f"{note} But the “before” samples of {_of(len(copies), len(before))} reproduce the track: treat them as copies."
    )


def recovered(results: Sequence[Result]) -> str:
    """Of how many tracks a prompt in words recovers what; empty where that was not measured."""
    rows = {(row.metric, row.model): row for row in results if row.set == "forget" and row.value is not None}
    features = {spec.name: spec.short for spec in row_specs() if spec.similarity == "feature"}
    parts = {metric: rows.get((metric, "unlearned")) for metric in features}
    if not all(parts.values()):
        return ""
    tracks = max(row.n for row in parts.values() if row)

    def counts(role: str) -> str:
        named = [(word, rows.get((metric, role))) for metric, word in features.items()]
        return ", ".join(f"the {word} of {count(row)}" for word, row in named if row)

    before = counts("base")
    chances = [row.details.get("chance") for row in parts.values() if row]
    known = [chance for chance in chances if isinstance(chance, float) and chance > 0]
    return (
        f"With a prompt in words alone, the model reproduces {counts('unlearned')} of {_tracks(tracks)}"
        + (f"; before, {before}" if before else "")
        + (f". By chance alone, about one track in {1 / max(known):.0f} counts, for each." if known else ".")
    )


def name(line: SummaryRow) -> str:
    """A test's name in plain words; its label where there are none."""
    return line.spec.plain or line.label


def count(row: Result) -> int:
    """How many tracks a share stands for."""
    return round((row.value or 0.0) * row.n)


def _first(missed: Sequence[SummaryRow]) -> str:
    first = name(missed[0])
    more = f", and {len(missed) - 1} more" if len(missed) > 1 else ""
    return f"{first[:1].lower()}{first[1:]}{more}"


def _tests(lines: Sequence[SummaryRow], of: str = "") -> str:
    return " ".join(filter(None, (f"{len(lines)} test{_s(lines)}", of)))


def _tracks(number_: int) -> str:
    return f"{number_} track{'s' if number_ != 1 else ''}"


def _of(some: int, all_: int) -> str:
    return _tracks(some) if some == all_ else f"{some} of {_tracks(all_)}"


def _s(items: Sequence[object]) -> str:
    return "s" if len(items) != 1 else ""
