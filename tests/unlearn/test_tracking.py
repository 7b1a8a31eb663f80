"""Trackers beside `log.jsonl`: what they receive, that a resumed run goes on, and that their failures end no run."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from tests.cli.test_forget import arguments, read

from encore.errors import MissingExtraError, UsageError
from encore.methods.graddiff import GradDiff
from encore.unlearn import tracking
from encore.unlearn.tracking import check_tracker, figures_of

WANDB = '''
"""What Encore uses of wandb 0.31: init, Run.log, Run.finish and Settings. Writes a JSON line per call."""
import json
import os


def write(**call):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(call) + "\\n")


class Settings:
    def __init__(self, **settings):
        self.settings = settings


class Run:
    def log(self, data, step):
        if step == int(os.environ.get("BREAKS_AT", -1)):
            raise ConnectionError("the server is gone")
        write(step=step, figures=data)

    def finish(self, exit_code):
        write(exit_code=exit_code)


def init(*, project, name, dir, config, id, resume, mode, settings):
    assert settings.settings == {"x_disable_meta": True, "console": "off"}
    if os.environ.get("REFUSES"):
        raise RuntimeError("not\\nlogged in")
    write(project=project, name=name, dir=dir, config=config, id=id, resume=resume, mode=mode)
    return Run()
'''


@pytest.fixture
def calls(site, tmp_path, monkeypatch):
    """Calls of a stand-in of wandb, which is importable as `wandb`."""
    (site.folder / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(site.folder))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls.jsonl"))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    importlib.invalidate_caches()
    yield lambda: lines(tmp_path / "calls.jsonl")
    sys.modules.pop("wandb", None)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def logged(run: Path) -> dict[str, dict[int, float]]:
    """Figures by name and step, from the run's log."""
    figures: dict[str, dict[int, float]] = {}
    for line in lines(run / "log.jsonl"):
        if "snapshot" in line:
            forget = line["snapshot"]["forget"].values()
            values = {"nll/forget": sum(forget) / len(forget), "nll/holdout": line["snapshot"]["holdout"]}
        else:
            values = {
                f"train/{key}": line[key] for key in ("lr", "grad_norm", "forget_loss", "retain_loss") if key in line
            }
        for name, value in values.items():
            figures.setdefault(name, {})[line["step"]] = value
    return figures


def test_tensorboard_has_the_figures_of_the_log_and_the_options(studio, call, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert call(*arguments(studio, out="plain", option="eval_every=2")).code == 0
    done = call(*arguments(studio, tracker="tensorboard", option="eval_every=2"))
    assert done.code == 0, done.err
    assert "tensorboard" not in done.err
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    for name, values in logged(Path("run")).items():
        read_back = {event.step: event.value for event in events.Scalars(name)}
        assert read_back == pytest.approx(values, rel=1e-6), name
    assert {"nll/forget_target", "nll/other_retain"} <= set(events.Tags()["scalars"])
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    for text in (b"graddiff", b"forget_tracks", b"per_track_clip"):
        assert text in content
    for text in (b"one.wav", str(studio).encode()):
        assert text not in content
    plain, tracked = read("plain/run.json"), read("run/run.json")
    assert plain.keys() == tracked.keys()
    assert plain["flags"].keys() == tracked["flags"].keys()
    assert plain["outcome"] == tracked["outcome"]


def test_a_resumed_run_continues_in_wandb(studio, call, calls, monkeypatch):
    real, count = GradDiff.forget_loss, []

    def breaks(self, step, batch):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return real(self, step, batch)

    flags = {"tracker": "wandb", "option": "checkpoint_seconds=0", "offline": True, "requester": "Ada"}
    with monkeypatch.context() as patch:
        patch.setattr(GradDiff, "forget_loss", breaks)
        call(*arguments(studio, **flags))
    assert call(*arguments(studio, **flags, resume=True)).code == 0
    first, again = [entry for entry in calls() if "project" in entry]
    assert first == again
    assert (first["project"], first["name"], first["mode"], first["resume"]) == ("encore", "run", "offline", "allow")
    assert first["config"]["steps"] == 3
    assert first["config"]["model"] == "model"  # not its path
    assert "Ada" not in json.dumps(calls())
    assert [entry["exit_code"] for entry in calls() if "exit_code" in entry] == [1, 0]
    steps = [entry["step"] for entry in calls() if "train/lr" in entry.get("figures", {})]
    assert steps == [1, 2, 3]
    assert [list(entry["figures"]) for entry in calls() if entry.get("step") == 3][-1][0] == "nll/forget"


def test_a_tracker_that_fails_fails_no_run(studio, call, calls, monkeypatch):
    monkeypatch.setenv("BREAKS_AT", "2")
    done = call(*arguments(studio, tracker="wandb"))
    assert done.code == 0
    note = "wandb failed and receives nothing more: ConnectionError: the server is gone; log.jsonl has every figure"
    assert done.err.count("wandb") == 1
    assert note in " ".join(done.err.split())
    assert [entry["step"] for entry in calls() if "step" in entry] == [1]
    monkeypatch.setenv("REFUSES", "1")
    done = call(*arguments(studio, tracker="wandb", out="second"))
    assert done.code == 0
    assert "wandb can't be used: RuntimeError: not logged in; log.jsonl has every figure" in " ".join(done.err.split())
    assert len(lines(Path("second/log.jsonl"))) == len(lines(Path("run/log.jsonl")))


def test_what_is_not_there_is_refused_before_the_run(studio, call, monkeypatch):
    with pytest.raises(UsageError, match="no tracker 'mlflow'"):
        check_tracker("mlflow")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        check_tracker("tensorboard")
    assert "encore-music[trackers]" in caught.value.hint
    done = call(*arguments(studio, tracker="wandb"))
    assert done.code == 1
    assert "--tracker wandb needs wandb, which is not installed" in done.err
    assert not Path("run").exists()


def test_steps_count_through_the_phases_of_a_method(tmp_path, monkeypatch):
    received = []

    class Tracker:
        def __init__(self, *_arguments):
            pass

        def log(self, figures, step):
            received.append((step, figures))

        def close(self, failed):
            received.append(failed)

    monkeypatch.setattr(tracking, "TRACKERS", {"fake": Tracker})
    with tracking.tracking("fake", tmp_path, {}, pytest.fail) as send:
        for phase, step in ((1, 1), (1, 2), (2, 1)):
            send({"phase": phase, "step": step, "of": 9, "lr": 0.1, "grad_norm": None})
        send({"stage": "fisher", "step": 5, "of": 9})
        send({"event": "checkpoint", "phase": 2, "step": 1})
    assert received == [(1, {"train/lr": 0.1}), (2, {"train/lr": 0.1}), (3, {"train/lr": 0.1}), False]


def test_figures_of_a_snapshot_are_means():
    snapshot = {"forget": {"a": 1.0, "b": 3.0}, "target_nll": {}, "memorised": {"c": 0.5}, "not_memorised": {}}
    line = {"phase": 1, "step": 3, "of": 3, "snapshot": {**snapshot, "holdout": None, "score": 1.0}}
    assert figures_of(line) == {"nll/forget": 2.0, "nll/memorised_retain": 0.5}
