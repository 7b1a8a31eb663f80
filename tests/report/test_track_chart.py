"""The first picture: where each mark stands, in which order the tracks come, and what it says without a gold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.report.made_run import TRACKS, UNSEEN, entry, row, rows, run_record

from encore.api import Result
from encore.report.run_files import RunFiles
from encore.report.track_chart import pictures, reproduced, worst_first


def of(results: list[Result], **outcome: object) -> RunFiles:
    record = run_record()
    request = {"forget": [entry(track) for track in TRACKS], "retain": [], "holdout": []}
    return RunFiles(Path(), request, record | {"outcome": record["outcome"] | outcome}, results)


def shares(metric: str, model: str, *values: float, clips: str = "forget") -> Result:
    tracks = dict(zip(TRACKS if clips == "forget" else UNSEEN, values, strict=False))
    return row(metric, model, clips, sum(value >= 0.8 for value in values) / 3, unit="share", per_track=tracks)


def test_case_E11_a_dot_for_before_after_and_gold_of_each_track() -> None:
    results = [
        shares("verbatim", "base", 1.0, 1.0, 1.0), shares("verbatim", "unlearned", 0.1, 0.2, 0.9),
        shares("verbatim_caption", "unlearned", 0.3, 0.1, 0.0), shares("verbatim", "gold", 0.05, 0.05, 0.05),
        shares("verbatim_codes", "unlearned", 1.0, 1.0, 1.0),  # no share of tracks
        shares("verbatim", "unlearned", 1.0, 1.0, clips="retain"),
    ]  # fmt: skip
    (picture,) = pictures(of(results))
    assert picture.limit == 80
    assert [(strip.track, strip.failed) for strip in picture.strips] == [
        ("Three", True),
        ("One", False),
        ("Two", False),
    ]
    assert [(mark.role, mark.x) for mark in picture.strips[1].marks] == [("base", 100), ("unlearned", 30), ("gold", 5)]
    assert (
        picture.strips[1].text
        == "before 100\N{NO-BREAK SPACE}%, after 30\N{NO-BREAK SPACE}%, gold 5\N{NO-BREAK SPACE}%"
    )
    assert "had it never learned them" in picture.names["gold"]


def test_without_gold_held_out_music_takes_its_place() -> None:
    results = [shares("verbatim", "unlearned", 0.1, 0.2, 0.3), shares("verbatim", "base", 0.02, 0.04, clips="holdout")]
    results.append(row("nll", "unlearned", "forget", 4.0, per_track=dict(zip(TRACKS, (4.4, 2.2, 5.5), strict=True))))
    reproduction, prediction = pictures(of(results))
    assert {strip.marks[-1].x for strip in reproduction.strips} == {3}
    assert "held-out music" in reproduction.names["gold"]
    assert [(strip.track, strip.marks[0].x, strip.marks[1].x) for strip in prediction.strips] == [
        ("Two", 40, 80), ("Three", 100, 80), ("One", 80, 80),
    ]  # fmt: skip
    alone = pictures(of([shares("verbatim", "unlearned", 0.1, 0.2, 0.3)], holdout_nll=None))
    assert list(alone[0].names) == ["unlearned"]


def test_a_model_without_tokens_and_odd_figures() -> None:
    losses = row("nll", "unlearned", "forget", 0.5, unit="loss", per_track={"one": 0.0, "two": None, "three": -1.0})
    files = of([losses], holdout_nll=0.0)
    (picture,) = pictures(replace(files, run={**files.run, "unit": "loss"}))
    assert {mark.x for strip in picture.strips for mark in strip.marks} == {0}
    assert picture.caption.startswith("loss. ")
    assert pictures(of([])) == []


def test_a_track_counts_where_gold_does_not_reproduce_it_under_the_same_test() -> None:
    results = [shares("new_verbatim", "unlearned", 0.9, 0.9, 0.1), shares("new_verbatim", "gold", 0.9, 0.1, 0.1)]
    results.append(shares("quantised_8bit_verbatim", "unlearned", 0.1, 0.8, 0.1))
    assert reproduced(results) == {"two": ["new_verbatim", "quantised_8bit_verbatim"]}


def test_the_nearest_to_being_known_is_first() -> None:
    own = {"one": 4.2, "two": 1.0, "three": 4.4}
    results = [
        replace(found, per_track=own)
        if (found.metric, found.model, found.set) == ("nll", "unlearned", "forget")
        else found
        for found in rows()
    ]
    assert worst_first(of(results)) == ["two", "one", "three"]
    results.append(shares("paraphrased_verbatim", "unlearned", 0.0, 0.0, 0.85))
    assert worst_first(of(results)) == ["three", "two", "one"]
