"""`encore runs`, `encore compare`, `encore open`."""

from __future__ import annotations

import json
import os

import pytest

from encore.api import Result
from encore.store.metrics_json import write_metrics
from encore.store.run_folder import locked, read_json, write_json

TRACKS = tuple(f"t{n}" for n in range(8))


def made(folder, *, nll=None, done=True, method="npo", started=None, model="m" * 64, collapsed=False):
    """A run by hand; measured where there is an NLL (a track)."""
    folder.mkdir(parents=True)
    tracks = [{"id": track, "sha256": track} for track in TRACKS]
    asked = {"model": {"name": "/models/small", "sha256": model}, "method": method, "forget": tracks}
    dates = {"begun": started} if started else {}
    write_json(folder / "request.json", {**asked, "retain": [], "holdout": [], **dates})
    if done:
        write_json(folder / "run.json", {"outcome": {"collapsed": collapsed}})
    if nll is not None:
        base = Result("nll", "base", "retain", 0.1, n=8)
        retain = Result("nll", "unlearned", "retain", 0.12, n=8, low=0.11, high=0.13)
        values = dict(zip(TRACKS, nll, strict=True))
        forget = Result("nll", "unlearned", "forget", sum(nll) / 8, n=8, per_track=values)
        write_metrics(folder / "metrics.json", [base, retain, forget])
    return folder


def test_case_E12_runs_lists_every_run_and_how_it_stands(call, tmp_path):
    made(tmp_path / "a", nll=[4.0] * 8, started="2026-05-04T03:02:01Z")
    made(tmp_path / "deep/b/seed-0", started="2026-06-04T03:02:01Z", method="=cmd()")
    made(tmp_path / "c", done=False)
    made(tmp_path / "d", done=False)
    made(tmp_path / "e", collapsed=True, nll=[4.0] * 8)
    made(tmp_path / "a/inner", nll=[4.0] * 8)  # what is in a run is the run's own
    (tmp_path / "f").mkdir()
    (tmp_path / "f/request.json").write_text("[" * 100_000)
    (tmp_path / "g").mkdir()
    (tmp_path / "g/request.json").write_text('{"forget": 3, "model": []}')
    made(tmp_path / "h")
    (tmp_path / "h/run.json").write_text('{"outcome": 3}')
    (tmp_path / "i").mkdir()
    (tmp_path / "i/request.json").write_text('{"method": "ga", "forget": []}')
    (tmp_path / "none").mkdir()
    os.utime(tmp_path / "c/request.json", (0, 0))
    with locked(tmp_path / "d"):
        done = call("runs", tmp_path, "--json")
        shown = call("runs", tmp_path)
    assert done.code == shown.code == 0, done.err
    rows = {row["name"]: row for row in json.loads(done.out)["runs"]}
    assert {name: row["state"] for name, row in rows.items()} == {
        "a": "measured", "deep/b/seed-0": "not measured", "c": "unfinished", "d": "running", "e": "collapsed",
        "f": "unreadable", "g": "unreadable", "h": "unreadable", "i": "unreadable",
    }  # fmt: skip
    assert (rows["a"]["retain"], rows["a"]["forget"], rows["a"]["tracks"]) == ("1/1", "", 8)
    assert (rows["a"]["date"], rows["c"]["date"]) == ("2026-05-04T03:02:01Z", "1970-01-01T00:00:00Z")
    assert rows["a"]["size"] == sum(path.stat().st_size for path in (tmp_path / "a").rglob("*") if path.is_file())
    dated = [row["date"] for row in json.loads(done.out)["runs"]]
    assert dated == sorted(dated, reverse=True)
    assert "warning: f: " in shown.err
    assert "Error" not in shown.err  # no class of Python's
    assert f"{tmp_path / 'h/run.json'} was changed" in shown.err
    assert "warning: i: " in shown.err
    assert "request.json has no 'model'" in shown.err
    assert "small" in shown.out
    assert "/models/small" not in shown.out


def test_a_folder_without_runs_and_one_that_is_not_there(call, tmp_path):
    assert (done := call("runs", tmp_path)).code == 0
    assert "there is no run in" in done.err
    assert json.loads(call("runs", tmp_path, "--json").out)["runs"] == []
    assert call("runs", tmp_path / "no").code == 3


def test_case_E12_compare_shows_differences_and_which_are_noise(call, tmp_path):
    low = [3.0, 3.1, 3.2, 2.9, 3.0, 3.1, 3.2, 2.9]
    made(tmp_path / "a", nll=low)
    made(tmp_path / "same", nll=low)
    made(tmp_path / "noise", nll=[value + step for value, step in zip(low, (0.3, -0.3) * 4, strict=True)])
    made(tmp_path / "other", nll=[value + 1 + 0.01 * i for i, value in enumerate(low)])
    names = ["a", "same", "noise", "other"]
    done = call("compare", *(tmp_path / name for name in names), "--json")
    assert done.code == 0, done.err
    rows = {(row["metric"], row["set"]): row for row in json.loads(done.out)["rows"]}
    forget = rows["nll", "forget"]
    assert [one["verdict"] for one in forget["differences"]] == ["same", "within noise", "differs"]
    assert forget["differences"][2]["value"] == pytest.approx(1.035)
    assert forget["differences"][2]["low"] <= 1.035 <= forget["differences"][2]["high"]
    assert [one["verdict"] for one in rows["nll", "retain"]["differences"]] == ["same"] * 3
    shown = call("compare", *(tmp_path / name for name in names))
    assert "differs" in shown.out
    assert "warning" not in shown.err


def test_counts_of_tracks_are_compared_as_counts(call, tmp_path):
    """What each track came to is a share of its codes, and not what is counted."""

    def continued(hits, share, low, high):
        per_track = dict.fromkeys(TRACKS, share)
        return Result(
            "verbatim", "unlearned", "forget", hits / 8, n=8, unit="share", low=low, high=high, per_track=per_track
        )

    for name, row in (
        ("a", continued(0, 0.1, 0, 0.32)), ("b", continued(0, 0.3, 0, 0.32)), ("c", continued(2, 0.3, 0.07, 0.6)),
        ("d", continued(8, 1.0, 0.68, 1)),
    ):  # fmt: skip
        made(tmp_path / name)
        write_metrics(tmp_path / name / "metrics.json", [row])
    done = call("compare", *(tmp_path / name for name in "abcd"), "--json")
    (row,) = json.loads(done.out)["rows"]
    assert [(one["value"], one["verdict"]) for one in row["differences"]] == [
        (0.0, "same"), (0.25, "within noise"), (1.0, "differs")
    ]  # fmt: skip


def test_a_figure_that_is_not_the_mean_of_its_tracks_is_compared_by_its_interval(call, tmp_path):
    scores = dict(zip(TRACKS, range(8), strict=True))
    for name, value, shift in (("a", 0.5, 0), ("b", 0.6, 100), ("c", 0.9, 100)):
        made(tmp_path / name)
        per_track = {track: score + shift + score % 3 for track, score in scores.items()}
        low, high = value - 0.1, value + 0.09
        row = Result("membership_auc", "unlearned", "forget", value, n=8, low=low, high=high, per_track=per_track)
        write_metrics(tmp_path / name / "metrics.json", [row])
    done = call("compare", *(tmp_path / name for name in "abc"), "--json")
    (row,) = json.loads(done.out)["rows"]
    assert [one["verdict"] for one in row["differences"]] == ["within noise", "differs"]
    assert [one["low"] for one in row["differences"]] == [None, None]


def test_compare_says_what_can_not_be_compared(call, tmp_path):
    made(tmp_path / "a", nll=[3.0] * 8)
    made(tmp_path / "b", nll=[3.0] * 8, model="x" * 64)
    done = call("compare", tmp_path / "a", tmp_path / "b")
    assert done.code == 0
    assert "have different base model" in done.err
    made(tmp_path / "c")
    assert (done := call("compare", tmp_path / "a", tmp_path / "c")).code == 3
    assert f"measure it: encore eval {tmp_path / 'c'}" in done.err
    assert call("compare", tmp_path / "a").code == 2
    assert call("compare").code == 2
    assert "there is no folder" in call("compare", tmp_path / "a", tmp_path / "nowhere").err
    (tmp_path / "b/metrics.json").write_text("{")
    assert call("compare", tmp_path / "a", tmp_path / "b").code == 3


def test_compare_says_which_models_embedders_and_captions_differ(call, tmp_path):
    for name, gold, embedder in (("a", "g" * 64, "clap/1"), ("b", "h" * 64, "clap/2"), ("c", "g" * 64, "clap/1")):
        run = made(tmp_path / name, nll=[3.0] * 8)
        models = {"base": "m" * 64, "unlearned": name * 64, "gold": gold}
        write_json(
            run / "evaluation.json", {"models": models, "embedders": {"clap": embedder}, "samples_per_caption": 1}
        )
    asked = read_json(tmp_path / "c/request.json")
    asked["forget"][0]["captions"] = ["another"]
    write_json(tmp_path / "c/request.json", asked)
    done = call("compare", *(tmp_path / name for name in "abc"), "--json")
    assert done.code == 0, done.err
    told = [doubt.partition(" have different ")[2].partition(":")[0] for doubt in json.loads(done.out)["doubts"]]
    assert told == ["gold models", "versions of the embedder clap", "forget tracks or captions"]
    made(tmp_path / "d", nll=[3.0] * 8)
    (tmp_path / "d/request.json").write_text('{"forget": [{"captions": [[]]}]}')
    assert call("compare", tmp_path / "a", tmp_path / "d").code == 3


def test_figures_of_different_definitions_are_not_compared(call, tmp_path):
    for name, version in (("a", 1), ("b", 2)):
        made(tmp_path / name)
        rows = [
            Result(metric, "unlearned", "forget", float(version), n=8, version=number)
            for metric, number in (("nll", 1), ("privleak", version))
        ]
        write_metrics(tmp_path / name / "metrics.json", rows)
    found = json.loads(call("compare", tmp_path / "a", tmp_path / "b", "--json").out)
    assert {row["metric"]: row["differences"][0]["value"] for row in found["rows"]} == {"nll": 1.0, "privleak": None}
    (doubt,) = found["doubts"]
    assert doubt.endswith("not compared: PrivLeak")


def test_an_interval_of_a_difference_of_aucs_is_one_that_it_can_have(call, tmp_path):
    for name, scores in (("a", [0, 1, 0]), ("b", [1, 1, 0])):
        made(tmp_path / name)
        row = Result(
            "membership_auc", "unlearned", "forget", sum(scores) / 3, n=6, unit="AUC",
            per_track=dict(zip(TRACKS, map(float, scores), strict=False)),
        )  # fmt: skip
        write_metrics(tmp_path / name / "metrics.json", [row])
    (row,) = json.loads(call("compare", tmp_path / "a", tmp_path / "b", "--json").out)["rows"]
    (one,) = row["differences"]
    assert -1 <= one["low"] <= 0 < one["value"] <= one["high"] <= 1
    assert one["verdict"] == "within noise"


def test_case_E12_open_prints_the_path_or_opens_the_browser(call, tmp_path, monkeypatch):
    run = made(tmp_path / "a b")
    assert (done := call("open", run)).code == 3
    assert f"make it: encore eval {run}" in done.err
    assert "lists the runs" in call("open", tmp_path).err
    (run / "report.html").write_text("<p>")
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    assert call("open", run, "--print").out == f"{run / 'report.html'}\n"
    assert not opened
    assert call("open", run).out == ""
    assert opened == [(run / "report.html").as_uri()]
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    assert call("open", run).out == f"{run / 'report.html'}\n"
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    opened.clear()
    assert call("open", run).out == f"{run / 'report.html'}\n"
    assert not opened
