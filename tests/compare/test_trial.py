"""Cells on a real model: what one leaves, that nothing is done twice, and requests one after another."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from encore.backends.musicgen import MusicgenBackend
from encore.compare.matrix import matrix_lines
from encore.compare.plan import Plan, plan_tracks, unfinished, write_plan
from encore.compare.sequential import request_lines
from encore.compare.trial import run_trial
from encore.errors import UsageError
from encore.reporter import Reporter
from encore.store.metrics_json import read_metrics


@pytest.fixture
def studio_plan(studio):
    music = studio / "music"
    return Plan(
        methods={"graddiff": ("steps=2",)}, seeds=(0,), model=str(studio / "model"), tracks=str(music / "forget.txt"),
        catalog=str(music / "catalog.jsonl"), holdout=str(music / "holdout.txt"), metrics=("nll", "verbatim"),
    )  # fmt: skip


def test_a_cell_is_an_ordinary_run_and_is_done_once(tmp_path, studio_plan):
    out = tmp_path / "bench"
    write_plan(studio_plan, out)
    (trial,) = unfinished(studio_plan, out, plan_tracks(studio_plan, out))
    run_trial(out, trial.name, Reporter())
    run = out / "graddiff/seed-0"
    told = json.loads((run / "run.json").read_text())
    assert told["options"]["steps"] == {"value": 2, "from": "cli"}
    assert told["flags"]["model"] == {"value": studio_plan.model, "from": "cli"}
    assert told["flags"]["device"]["from"] == "default"
    assert told["cost"]["peak_bytes"] > 1e6
    assert told["cost"]["tokens_per_second"] > 0
    assert {row.metric for row in read_metrics(run / "metrics.json")} >= {"nll", "verbatim"}
    assert not list(unfinished(studio_plan, out, plan_tracks(studio_plan, out)))

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    run_trial(out, trial.name, Reporter())
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before

    wider = studio_plan.model_copy(update={"metrics": ("nll",)})
    write_plan(wider, out)
    assert [trial.name for trial in unfinished(wider, out, plan_tracks(wider, out))] == ["graddiff/seed-0"]
    run_trial(out, trial.name, Reporter())
    assert (run / "run.json").stat().st_mtime_ns == before[run / "run.json"]  # measured anew, not made anew
    assert {row.metric.partition("_")[0] for row in read_metrics(run / "metrics.json")} == {"nll"}

    other = wider.model_copy(update={"methods": {"graddiff": ("steps=3",)}})
    with pytest.raises(UsageError, match="options: steps 2 -> 3"):
        list(unfinished(other, out, plan_tracks(other, out)))
    with pytest.raises(UsageError, match="no trial 'graddiff/seed-7'"):
        run_trial(out, "graddiff/seed-7", Reporter())


def test_requests_begin_where_the_last_one_left_off(tmp_path, studio_plan):
    out = tmp_path / "bench"
    plan = studio_plan.model_copy(update={"requests": (2,)})
    write_plan(plan, out)
    (trial,) = plan.trials
    run_trial(out, trial.name, Reporter())
    folder = out / trial.name
    asked = [json.loads((folder / number / "request.json").read_text()) for number in "12"]
    done = [json.loads((folder / number / "run.json").read_text()) for number in "12"]
    assert asked[1]["model"]["sha256"] == done[0]["unlearned_sha256"] != asked[0]["model"]["sha256"]
    ids = [{track["id"] for track in request["forget"]} for request in asked]
    kept = [{track["id"] for track in request["retain"]} for request in asked]
    assert not ids[0] & ids[1]
    assert ids[1] <= kept[0]  # nobody had asked for those yet
    assert not (ids[0] | ids[1]) & kept[1]  # what was forgotten is not taught again
    whole = {
        row.model: row for row in read_metrics(folder / "metrics.json") if (row.metric, row.set) == ("nll", "forget")
    }
    assert set(whole["unlearned"].per_track) == ids[0] | ids[1]
    lines = request_lines(plan, out)
    assert [line.tracks for line in lines] == [len(own) for own in ids]
    assert not list(unfinished(plan, out, plan_tracks(plan, out)))


def test_every_list_is_forgotten_and_measured_on_its_own(tmp_path, studio_plan):
    out = tmp_path / "bench"
    alone = tmp_path / "alone.txt"
    alone.write_text("id:four\n")
    gold = shutil.copytree(studio_plan.model, tmp_path / "gold")
    weaken(gold)
    lists = {"forget_sizes": (2,), "lists": {"alone": str(alone)}, "list_golds": {"alone": {"gold": str(gold)}}}
    plan = studio_plan.model_copy(update=lists)
    write_plan(plan, out)
    whole = plan_tracks(plan, out)
    trials = list(unfinished(plan, out, whole))
    assert [trial.name for trial in trials] == ["2/graddiff/seed-0", "alone/graddiff/seed-0"]
    for trial in trials:
        run_trial(out, trial.name, Reporter())
    assert not list(unfinished(plan, out, whole))
    asked = {trial.list: json.loads((out / trial.name / "request.json").read_text()) for trial in trials}
    of = {name: {key: [track["id"] for track in request[key]] for key in ("forget", "retain")}
          for name, request in asked.items()}  # fmt: skip
    listed = {track.id for track in whole.forget}
    assert set(of["2"]["forget"]) < listed
    assert len(of["2"]["forget"]) == 2
    assert of["alone"]["forget"] == ["four"]
    for own in of.values():
        assert set(own["forget"]) | set(own["retain"]) == listed | {track.id for track in whole.retain}
    roles = {trial.list: {row.model for row in read_metrics(out / trial.name / "metrics.json")} for trial in trials}
    assert "gold" in roles["alone"]
    assert "gold" not in roles["2"]  # nobody gave one
    lines = matrix_lines(plan, out, whole)
    assert [(line.list, line.tracks, line.seeds) for line in lines] == [("2", 2, (0,)), ("alone", 1, (0,))]
    assert [line.note for line in lines] == ["no gold, which most rows need: give one with --gold NAME=FOLDER", ""]
    assert lines[0].median("held-out NLL, change") is not None
    assert lines[1].median("forget NLL: within 10 % of gold's") is not None

    more = plan.model_copy(update={"forget_sizes": (1, 2)})  # what is there stays, and only the new ones are left
    assert [trial.list for trial in unfinished(more, out, whole)] == ["1a", "1b", "1c"]


def test_what_changed_since_is_not_taken_as_done(tmp_path, studio_plan):
    out = tmp_path / "bench"
    model, gold = tmp_path / "model", tmp_path / "gold"
    for folder in (model, gold):
        shutil.copytree(studio_plan.model, folder)
    weaken(gold)
    plan = studio_plan.model_copy(update={"model": str(model), "golds": {"gold": str(gold)}})
    write_plan(plan, out)
    run_trial(out, plan.trials[0].name, Reporter())
    tracks = plan_tracks(plan, out)
    assert not list(unfinished(plan, out, tracks))
    renamed = [replace(track, caption="another") for track in tracks.forget]
    with pytest.raises(UsageError, match="other forget tracks or captions"):
        list(unfinished(plan, out, replace(tracks, forget=tuple(renamed))))
    with pytest.raises(UsageError, match="precision: fp32 -> bf16"):
        list(unfinished(plan.model_copy(update={"precision": "bf16"}), out, tracks))
    weaken(gold)
    assert [trial.name for trial in unfinished(plan, out, tracks)] == ["graddiff/seed-0"]
    weaken(model)
    with pytest.raises(UsageError, match="made from a model that has changed since"):
        list(unfinished(plan, out, tracks))


def weaken(folder):
    """Change a model's weights where it lies."""
    model = MusicgenBackend.load(str(folder))
    with torch.no_grad():
        next(model.module.parameters()).mul_(0.5)
    model.save(folder)


def test_a_cell_that_was_cut_short_ends_as_if_it_had_not_been(tmp_path, studio_plan, monkeypatch):
    from safetensors.torch import load_file

    from encore.methods.graddiff import GradDiff

    plan = studio_plan.model_copy(update={"methods": {"graddiff": ("steps=4", "checkpoint_seconds=0")}})
    for name in ("whole", "cut"):
        write_plan(plan, tmp_path / name)
    run_trial(tmp_path / "whole", "graddiff/seed-0", Reporter())
    real, calls = GradDiff.forget_loss, []

    def breaks(self, step, batch):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, step, batch)

    monkeypatch.setattr(GradDiff, "forget_loss", breaks)
    with pytest.raises(KeyboardInterrupt):
        run_trial(tmp_path / "cut", "graddiff/seed-0", Reporter())
    assert not (tmp_path / "cut/graddiff/seed-0/run.json").exists()
    run_trial(tmp_path / "cut", "graddiff/seed-0", Reporter())
    whole, cut = (load_file(tmp_path / name / "graddiff/seed-0/model/model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
