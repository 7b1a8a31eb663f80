"""The verdict, of good runs, bad ones, and the fakes that a mean would not catch; and the explanations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.report.made_run import TRACKS, row, run_record, write_run
from tests.report.made_run import rows as good

from encore.api import Result
from encore.report import run_files
from encore.report.formatting import number, percent, unit_text
from encore.report.run_files import RunFiles, read_run
from encore.report.verdict import audio_note, doubts, glossary, part, remains, task, verdict
from encore.results.findings import Finding

GOOD = "No evidence of retention in 6 of 6 tests"
GOLD = "Forgetting can't be judged beside this gold: it has memorised the tracks itself"
NOTHING = "Nothing measurable to forget: the base model shows no sign of the tracks"


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., RunFiles]:
    def make(change: Callable[[Result], Result | None] = lambda row: row, **record: object) -> RunFiles:
        results = [changed for row in good() if (changed := change(row)) is not None]
        return read_run(write_run(tmp_path / "run", results=results, **record))

    return make


def only(metric: str, model: str, clips: str, value: float) -> Callable[[Result], Result]:
    return lambda row: (
        replace(row, value=value) if (row.metric, row.model, row.set) == (metric, model, clips) else row
    )  # fmt: skip


def reproduces(metric: str, *tracks: str) -> Callable[[Result], Result]:
    shares = {track: 0.9 if track in tracks else 0.1 for track in TRACKS}
    return lambda row: (
        replace(row, value=len(tracks) / len(TRACKS), per_track=shares)
        if (row.metric, row.model, row.set) == (metric, "unlearned", "forget") else row
    )  # fmt: skip


def test_a_good_run(files: Callable[..., RunFiles]) -> None:
    found = verdict(files())
    assert (found.level, found.headline) == ("good", "No evidence of retention in 6 of 6 tests")


def test_a_fake_that_hides_behind_captions_is_caught(files: Callable[..., RunFiles]) -> None:
    """Noise whenever a caption is given, while an audio prompt still brings the track back."""
    found = verdict(files(reproduces("verbatim", "one", "two", "three")))
    assert (found.level, found.headline) == ("bad", "1 of 6 tests failed: the model still reproduces 3 tracks")


def test_case_E11_the_verdict_counts_tracks_and_says_by_what_they_come_back(files: Callable[..., RunFiles]) -> None:
    made = files(reproduces("verbatim", "two"))
    assert verdict(made).headline == "1 of 6 tests failed: the model still reproduces 1 of 3 tracks"
    rounded = row("quantised_4bit_verbatim", "unlearned", "forget", 1 / 3, unit="share", per_track={"one": 0.9})
    gold = replace(rounded, model="gold", value=0.0, per_track={"one": 0.1})
    base = replace(rounded, model="base", value=1.0, per_track={"one": 1.0})
    attacked = replace(made, results=[*good(), rounded, gold, base])
    assert verdict(attacked).headline == (
        "1 of 7 tests failed: with its weights rounded, the model reproduces 1 of 3 tracks"
    )
    unreproduced = replace(made, results=list(map(only("relearn", "unlearned", "forget", 0.1), good())))
    assert verdict(unreproduced).headline == "1 of 6 tests failed: recovery after a little training on the tracks"
    of_gold_too = [replace(line, model="gold") for line in made.results if line.model == "unlearned"]
    assert remains(replace(made, results=[*made.results, *of_gold_too])) == ""  # as a model without the tracks does


def test_findings_beside_failed_tests_are_counted(files: Callable[..., RunFiles]) -> None:
    made = files(reproduces("verbatim", "two"))
    ruined = replace(made, results=list(map(only("nll", "unlearned", "retain", 6.0), made.results)))
    assert verdict(ruined).headline.startswith("1 of 6 tests failed, with 1 further finding against this model: the")


def test_a_model_that_is_broken_everywhere_is_caught(files: Callable[..., RunFiles]) -> None:
    damaged = files(only("nll", "unlearned", "retain", 1.0))
    found = verdict(damaged)
    assert found.level == "bad"
    assert found.headline.endswith("in 6 of 6 tests, but 1 of 2 tests of the other music failed")
    ruined = replace(damaged, results=list(map(only("nll", "unlearned", "retain", 6.0), good())))
    assert verdict(ruined).headline.startswith("1 finding against this model: the NLL of retain is 6.00")
    collapsed = run_record()["outcome"] | {"collapsed": True}
    broken = verdict(RunFiles(Path(), {}, run_record() | {"outcome": collapsed}, good()))
    assert (broken.level, "damaged" in broken.headline) == ("bad", True)


def test_nothing_to_forget_and_nothing_to_compare_with(files: Callable[..., RunFiles]) -> None:
    def unknown(row: Result) -> Result:
        signs = {"verbatim": 0.0, "verbatim_caption": 0.0, "membership_auc": 0.5}
        return replace(row, value=signs[row.metric]) if row.model == "base" and row.metric in signs else row

    record = run_record()
    found = verdict(RunFiles(Path(), {}, record, list(map(unknown, good()))))
    assert (found.level, found.headline[:28]) == ("open", "Nothing measurable to forget")
    alone = RunFiles(Path(), {}, record, [row for row in good() if (row.metric, row.model) == ("nll", "unlearned")])
    assert verdict(alone).level == "open"
    assert any("There was no gold" in doubt for doubt in doubts(alone))


def test_what_was_asked(files: Callable[..., RunFiles]) -> None:
    told = task(files(tracks={"forget": 1, "retain": 0, "holdout": 0}))
    assert told == "The model tiny was to forget 1 track. The method encore changed it in 4 steps."


def test_numbers() -> None:
    given = (None, 0.0, 0.12345, 4.449, 63.25, 1234.5, 1e-7, -0.002)
    assert [number(value) for value in given] == ["–", "0.000", "0.123", "4.45", "63.25", "1234", "1.00e-07", "-0.002"]
    assert percent(0.525) == "52\N{NO-BREAK SPACE}%"
    assert unit_text("nats/token") == "nats per token"


@pytest.mark.parametrize(
    ("finding", "level", "headline"),
    [
        (("fail", "new: 2 of 3 tracks leak"), "bad", "1 finding against this model: new: 2 of 3 tracks leak"),
        (("warn", "a doubt"), "open", "No evidence of retention in 6 of 6 tests, with 1 warning"),
        (("info", "a note"), "good", "No evidence of retention in 6 of 6 tests"),
        (("warn", "other words", "nothing_to_forget"), "open", NOTHING),
        (("warn", "gold has it", "gold_knows"), "open", GOLD),
        (("warn", "nothing measurable to forget, says a title"), "open", f"{GOOD}, with 1 warning"),
        (("fail", "NLL, forget: says a title"), "bad", "1 finding against this model: NLL, forget: says a title"),
    ],
)
def test_case_E11_the_verdict_reads_codes_and_no_sentences(
    files: Callable[..., RunFiles], monkeypatch: pytest.MonkeyPatch, finding: tuple[str, ...], level: str, headline: str
) -> None:
    monkeypatch.setattr(run_files, "findings", lambda results: [Finding(*finding)])  # type: ignore[arg-type]
    found = verdict(files())
    assert (found.level, found.headline) == (level, headline)


def test_the_note_on_audio_is_true(files: Callable[..., RunFiles]) -> None:
    """`before` samples are generated by a model that may have memorised the tracks."""
    made = files()
    assert "all audio in it was generated by models. But the “before” samples of 3 tracks reproduce" in audio_note(
        made, originals=False
    )
    without = replace(made, samples=[sample for sample in made.samples if sample.role != "base"])
    assert audio_note(without, originals=False).endswith("all audio in it was generated by models.")
    unknown = replace(made, results=[row for row in made.results if row.metric != "verbatim_caption"])
    assert "may reproduce the tracks" in audio_note(unknown, originals=False)
    none = replace(made, results=[replace(row, per_track=dict.fromkeys(row.per_track, 0.0)) for row in made.results])
    assert "None of the “before” samples reproduces" in audio_note(none, originals=False)
    assert "contains the recordings themselves" in audio_note(made, originals=True)


def test_six_words(files: Callable[..., RunFiles]) -> None:
    made = files()
    assert [word for word, _ in glossary(made)][:4] == ["gold", "held-out", "NLL", "verbatim"]
    assert len(glossary(made)) == 6
    assert "loss" in dict(glossary(replace(made, run={**made.run, "unit": "loss"})))


def test_one_of_several_requests_says_so(files: Callable[..., RunFiles]) -> None:
    made = files()
    assert part(made) == ""  # of a run that does not tell how many its list names
    counts = {"forget": 3, "retain": 2, "holdout": 4}
    assert part(replace(made, run={**made.run, "tracks": {**counts, "listed": 3}})) == ""
    told = part(replace(made, run={**made.run, "tracks": {**counts, "listed": 8}}))
    assert "one of several requests" in told
    assert "has 8 tracks, and this request was for 3 of them" in told
