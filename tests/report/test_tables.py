"""Cells of the tables, and the order of tracks."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from tests.report.made_run import TRACKS, row, rows, write_run

from encore.report import tables
from encore.report.page import write_report
from encore.report.run_files import read_run
from encore.store.meta_json import RowTrust, trial_key
from encore.store.run_folder import write_json


def test_targets(made: Path) -> None:
    table = tables.targets(read_run(made))
    assert table.headers[:4] == ("figure", "target", "before", "after")
    cells = {line[0].text: line for line in table.rows}
    assert [cell.text for cell in cells["verbatim from 1 s, forget"][:5]] == [
        "verbatim from 1 s, forget", "reached", "3 of 3", "0 of 3", "0 of 3",
    ]  # fmt: skip
    assert cells["NLL, forget"][3].small == "4.40 to 4.60"
    assert cells["FAD to base, retain"][3].small == "not measured"


def test_a_trial_of_a_bench_says_which_figures_earned_trust(tmp_path: Path) -> None:
    run = write_run(tmp_path / "npo" / "seed-0")
    assert "trusted" not in tables.targets(read_run(run)).headers
    write_json(tmp_path / "meta.json", {"schema": 1})  # of something else
    assert "trusted" not in tables.targets(read_run(run)).headers
    found = [
        RowTrust("nll", "forget", "NLL, forget", "no", 0.6, 0.4, 0.8, 11, 10),
        RowTrust("verbatim", "forget", "verbatim", "incomplete", holds=3),
    ]
    contents = {"schema": 1, "models": {}, "rows": [asdict(row) for row in found]}
    write_json(tmp_path / "meta.json", contents | {"key": "of other golds"})
    assert "trusted" not in tables.targets(read_run(run)).headers
    write_json(tmp_path / "meta.json", contents | {"key": trial_key(run)})
    table = tables.targets(read_run(run))
    assert table.headers[-1] == "trusted"
    cells = {line[0].text: line[-1] for line in table.rows}
    assert cells["NLL, forget"] == tables.Cell("no", "AUC 0.60 (0.40 to 0.80), 11 and 10 models", "bad")
    assert cells["verbatim from 1 s, forget"] == tables.Cell("incomplete", "3 and 0 models")
    assert cells["NLL, retain"] == tables.Cell("–", "not tried")
    write_report(run)
    page = (run / "report.html").read_text()
    assert "AUC 0.60 (0.40 to 0.80)" in page
    assert "encore bench --meta" in page


def test_the_best_remembered_track_is_on_top(tmp_path: Path) -> None:
    own = {"one": 4.2, "two": 1.0, "three": 4.4}
    results = [found for found in rows() if (found.metric, found.model, found.set) != ("nll", "unlearned", "forget")]
    made = write_run(tmp_path / "run", results=[*results, row("nll", "unlearned", "forget", 3.2, per_track=own)])
    table = tables.tracks(read_run(made))
    assert [line[0].text for line in table.rows] == ["Two", "One", "Three"]
    assert table.rows[0][-1].state == "bad"
    assert [cell.text for cell in table.rows[0]][-3:-1] == ["yes → no", "yes → no"]


def test_a_track_has_its_title_its_length_and_its_caption() -> None:
    assert tables.track_cell({"id": "a", "title": None, "caption": "slow"}) == tables.Cell("a", "slow")
    assert (
        tables.track_cell({"id": "a", "title": "A", "caption": "slow", "seconds": 183.25}).small == "183.2\xa0s · slow"
    )
    assert tables.track_cell({"id": "a", "seconds": 5}).small == "5.0\xa0s"


def test_every_row_is_somewhere(made: Path) -> None:
    files = read_run(made)
    missing = [row for row in files.results if row.value is None]
    assert sum(len(table.rows) for table in tables.everything(files)) + len(missing) == len(files.results)
    assert tables.not_measured(files) == [("not measured: too few generations", "fad, retain (after)")]


def test_figures_that_are_missing_are_listed_by_reason(tmp_path: Path) -> None:
    gone = [row("fad", model, clips, None, why="x") for clips in ("retain", "holdout") for model in ("base", "mine")]
    files = read_run(write_run(tmp_path / "run", results=[*gone, row("new", "none", "forget", None)]))
    assert tables.not_measured(files) == [
        ("x", "fad, retain (before, mine); fad, holdout (before, mine)"), ("no reason is given", "new, forget (none)"),
    ]  # fmt: skip


def test_case_E11_tests_in_words_those_of_reproduction_first(tmp_path: Path) -> None:
    results = [found for found in rows() if found.metric != "kl_gold" and found.model != "gold2"]
    results += [row("kl_gold", "unlearned", "forget", 1.0), row("membership_p", "base", "forget", 0.9, unit="p")]
    tests = tables.tests(read_run(write_run(tmp_path / "run", results=results)))
    assert [test.name for test in tests][:2] == [
        "Verbatim continuation from a track's first second", "Verbatim generation from a track's description",
    ]  # fmt: skip
    assert tests[0].figures == "before 3 of 3, after 0 of 3, gold 0 of 3 tracks"
    assert (tests[0].target, tests[0].met, tests[0].worst) == ("no more than gold", True, "")
    unjudged = {test.name: test.why for test in tests if test.met is None}
    assert unjudged["Distance from a model trained without the tracks"] == (
        "there is no figure of “second gold” to compare with"
    )
    retain = next(test for test in tests if test.name == "How well it predicts the music to keep")
    assert retain.figures == "before 0.020, after 0.030, gold 0.020 nats per token"


def test_a_test_that_could_not_fail_is_not_judged_and_says_so(tmp_path: Path) -> None:
    weak = [
        replace(found, value=0.0) if (found.metric, found.model) == ("verbatim", "base") else found for found in rows()
    ]
    tests = tables.tests(read_run(write_run(tmp_path / "run", results=weak)))
    (why,) = [test.why for test in tests if test.met is None]
    assert why == "“before” shows nothing under this test either, so that it could not fail"


def test_tracks_of_other_metrics(tmp_path: Path) -> None:
    new = [row(f"new_{i}", "unlearned", "forget", 1.0, per_track={TRACKS[0]: float(i)}) for i in range(8)]
    found = tables.more_tracks(read_run(write_run(tmp_path / "run", results=[*rows(), *new])))
    assert [len(table.headers) for table in found] == [7, 3]
    assert found[1].rows[0][2].text == "7.00"


def test_what_a_simple_prompt_brings_back(tmp_path: Path) -> None:
    details = {"best": {"one": "greedy", "two": "sample 2"}, "threshold": 0.5, "above": [["one", "greedy", 0.9]]}
    found = {"one": 0.9, "two": 0.3}
    melody = row("similarity_melody", "unlearned", "forget", 0.6, unit="", per_track=found, details=details)
    before = row("similarity_melody", "base", "forget", 0.9, per_track={"one": 0.4, "two": 1.0}, details=details)
    harmony = row("similarity_chroma", "unlearned", "forget", 0.1, per_track={"one": 0.1}, details=details)
    odd = row("similarity_timbre", "unlearned", "forget", 0.1, per_track={"one": 0.1}, details=details)
    named = row("similarity_melody_flagged", "unlearned", "forget", 1 / 3, unit="share", per_track=found)
    files = read_run(write_run(tmp_path / "run", results=[*rows(), odd, melody, before, named, harmony]))
    assert tables.of_tracks(named)
    assert not tables.of_tracks(melody)
    table = tables.similarity(files)
    assert table is not None
    assert table.headers == ("track", "harmony", "melody", "similarity_timbre")  # of another's metric too
    assert [(line[2].text, line[2].small, line[2].state) for line in table.rows] == [
        ("no → yes", "0.900, chance\xa00.500", "bad"), ("yes → no", "0.300, chance\xa00.500", ""),
        ("– → –", "–, chance\xa00.500", ""),
    ]  # fmt: skip
    assert [line[1].text for line in table.rows] == ["– → no", "– → –", "– → –"]
    assert tables.similarity(read_run(write_run(tmp_path / "without"))) is None
