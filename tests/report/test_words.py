"""The verdict, of good runs, bad ones, and the fakes that a mean would not catch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.report.made_run import rows as good
from tests.report.made_run import run_record, write_run

from encore.api import Result
from encore.report.files import RunFiles, read_run
from encore.report.words import asked, doubts, number, part, percent, verdict


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


def test_a_good_run(files: Callable[..., RunFiles]) -> None:
    told = verdict(files())
    assert told.level == "good"
    assert told.headline == "No evidence of retention under 6 tests:"
    assert len(told.tests) == 6
    assert "deleted" not in "".join((told.headline, *told.found, *told.tests))


def test_a_fake_that_hides_behind_captions_is_caught(files: Callable[..., RunFiles]) -> None:
    """Noise whenever a caption is given, while an audio prompt still brings the track back."""
    told = verdict(files(only("verbatim", "unlearned", "forget", 1.0)))
    assert told.level == "bad"
    assert told.headline == "1 of 6 tests of forgetting failed:"
    assert told.tests == ("whether it plays the tracks on from their first second",)
    assert "From the description alone, the model played 3 of 3 tracks before and plays 0 now" in told.found[0]
    assert "first second, the model played 3 of 3 tracks before and plays 3 now" in told.found[1]


def test_a_model_that_is_broken_everywhere_is_caught(files: Callable[..., RunFiles]) -> None:
    told = verdict(files(only("nll", "unlearned", "retain", 6.0)))
    assert told.level == "bad"
    assert "the rest of the music suffered: how well it still knows the other music" in told.but
    collapsed = run_record()["outcome"] | {"collapsed": True}
    assert "damaged" in verdict(RunFiles(Path(), {}, run_record() | {"outcome": collapsed}, good())).headline


def test_nothing_to_forget_and_nothing_to_compare_with(files: Callable[..., RunFiles]) -> None:
    def unheard(row: Result) -> Result:
        signs = {"verbatim": 0.0, "verbatim_caption": 0.0, "membership_auc": 0.5}
        return replace(row, value=signs[row.metric]) if row.model == "base" and row.metric in signs else row

    record = run_record()
    assert "nothing measurable to forget" in verdict(RunFiles(Path(), {}, record, list(map(unheard, good())))).headline
    alone = RunFiles(Path(), {}, record, [row for row in good() if (row.metric, row.model) == ("nll", "unlearned")])
    assert verdict(alone).level == "open"
    assert any("There was no gold" in doubt for doubt in doubts(alone))


def test_what_was_asked(files: Callable[..., RunFiles]) -> None:
    told = asked(files(tracks={"forget": 1, "retain": 0, "holdout": 0}))
    assert told == "The model tiny was to forget 1 track. The method encore changed it in 4 steps."


def test_numbers() -> None:
    given = (None, 0.0, 0.12345, 4.449, 63.25, 1234.5, 1e-7, -0.002)
    assert [number(value) for value in given] == ["–", "0.000", "0.123", "4.45", "63.25", "1234", "1.00e-07", "-0.002"]
    assert percent(0.525) == "52\N{NO-BREAK SPACE}%"


def test_a_finding_that_no_target_stands_for_speaks_against_a_run(
    files: Callable[..., RunFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    from encore.metrics.summary import Finding
    from encore.report import words

    monkeypatch.setattr(words, "findings", lambda results: [Finding("fail", "2 of 3 forget tracks still replay")])
    told = verdict(files())
    assert (told.level, told.tests) == ("bad", ("2 of 3 forget tracks still replay",))


def test_one_of_several_requests_says_so(files: Callable[..., RunFiles]) -> None:
    made = files()
    assert part(made) == ""  # of a run that does not tell how many its list names
    counts = {"forget": 3, "retain": 2, "holdout": 4}
    assert part(replace(made, run={**made.run, "tracks": {**counts, "listed": 3}})) == ""
    told = part(replace(made, run={**made.run, "tracks": {**counts, "listed": 8}}))
    assert "one of several requests" in told
    assert "has 8 tracks, and this request was for 3 of them" in told
