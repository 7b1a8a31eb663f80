"""Rehearsals: which tracks stand in for those to forget, what is tried in which order, and what is kept of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from encore.errors import EncoreError, InputError, UsageError
from encore.hashing import module_sha256
from encore.plugins import methods
from encore.reporter import Reporter
from encore.unlearn import rehearsal as module
from encore.unlearn.calibrate import calibrate, expected_seconds, restored, rungs
from encore.unlearn.config import ForgetConfig
from encore.unlearn.rehearsal import Rehearsal, RehearsalResult, decoys
from encore.unlearn.run import Prepared, forget, prepare


def heard(*nlls: float):
    """Candidates, and their NLLs by id."""
    made = [SimpleNamespace(track=SimpleNamespace(id=f"c{i}")) for i in range(len(nlls))]
    return made, {f"c{i}": nll for i, nll in enumerate(nlls)}


def method(**options: object):
    chosen = methods().resolve("graddiff")
    return chosen(chosen.Options(**{"steps": 3, "eval_every": 3} | options))


@pytest.fixture
def prepared(studio: Path) -> Prepared:
    music = studio / "music"
    request = ForgetConfig(
        music / "forget.txt", Path("run"), model=str(studio / "model"), retain=str(music / "retain.txt"),
        holdout=music / "holdout.txt", device="cpu", calibrate=True,
    )  # fmt: skip
    return prepare(request, method())


def ids(chosen) -> list[str]:
    return [one.track.id for one in chosen]


def test_decoys_are_as_well_known_as_the_tracks_to_forget():
    candidates, known = heard(3.4, 0.01, 3.0, 0.02, 4.4, 0.05)
    assert ids(decoys(candidates, known, [0.03, 3.3], 8)) == ["c3", "c0"]  # one memorised, one not
    assert ids(decoys(candidates, known, [0.0, 0.0, 0.0], 8)) == ["c1", "c3", "c5"]  # none of them twice
    assert ids(decoys(candidates, known, [0.0] * 10 + [4.5] * 10, 2)) == ["c1", "c4"]  # a long list's mix


def test_the_ladder_scales_what_the_method_has():
    assert rungs(method(lr=4e-3, steps=10, decay_steps=8)) == [
        {"lr": 4e-3, "steps": 10, "decay_steps": 8}, {"lr": 2e-3, "steps": 20, "decay_steps": 16},
        {"lr": 8e-3, "steps": 10, "decay_steps": 8}, {"lr": 4e-3, "steps": 20, "decay_steps": 16},
    ]  # fmt: skip
    found_by_itself = SimpleNamespace(options=SimpleNamespace(lr=None, rate=0.1, steps=10))
    assert rungs(found_by_itself) == [
        {"rate": 0.1, "steps": 10}, {"rate": 0.05, "steps": 20}, {"rate": 0.2, "steps": 10}, {"rate": 0.1, "steps": 20},
    ]  # fmt: skip
    assert rungs(SimpleNamespace(options=SimpleNamespace(lr=None, steps=10))) == [{"steps": 10}, {"steps": 20}]
    assert rungs(SimpleNamespace(options=SimpleNamespace())) == [{}]


def test_what_the_user_set_is_not_scaled():
    one = method(lr=4e-3, steps=10, decay_steps=8)
    assert rungs(one, ["seed", "lr"]) == [{"steps": 10, "decay_steps": 8}, {"steps": 20, "decay_steps": 16}]
    assert rungs(one, ["decay_steps"]) == [{"lr": 4e-3}, {"lr": 2e-3}, {"lr": 8e-3}]
    assert rungs(one, ["steps", "lr"]) == [{}]
    found_by_itself = SimpleNamespace(options=SimpleNamespace(lr=1e-3, rate=0.1, steps=10))
    assert rungs(found_by_itself, ["lr"]) == [{"steps": 10}, {"steps": 20}], "a given lr leaves rate without effect"


def test_a_rehearsal_forgets_retain_tracks_on_a_copy_and_leaves_the_rest_alone(prepared, monkeypatch):
    seen = []
    real = module.Engine.__init__

    def watch(self, backend, clips, **more):
        seen.append((backend, clips))
        real(self, backend, clips, **more)

    monkeypatch.setattr(module.Engine, "__init__", watch)
    before = module_sha256(prepared.backend.module)
    rehearsal = Rehearsal(prepared, Reporter())
    trial = rehearsal.trial(method(), {"lr": 1.0})
    ((backend, clips),) = seen
    assert backend is not prepared.backend
    assert module_sha256(prepared.backend.module) == before
    tracks = {name: {clip.track for clip in getattr(clips, name)} for name in ("forget", "retain", "holdout")}
    own = {one.track.id for one in prepared.forget}
    assert tracks["forget"] == set(ids(rehearsal.decoys)) < {one.track.id for one in prepared.retain}
    assert tracks["forget"] | tracks["retain"] == {one.track.id for one in prepared.retain}
    assert not own & set().union(*tracks.values())
    assert trial.figures.keys() >= {
        "decoys", "lost", "recovered", "recovered_held_out"
    }  # fmt: skip
    assert not any("forget track" in text for text in trial.missed)
    assert trial.seconds > 0


def answers(monkeypatch, *found):
    """Let rehearsals come to this: missed targets and a score each, or an error."""
    left, asked = list(found), []

    def trial(self, method, options):
        asked.append(options)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return RehearsalResult(options, answer[0], {}, answer[1], 1.0)

    monkeypatch.setattr(Rehearsal, "trial", trial)
    return asked


def test_the_first_settings_that_pass_are_taken(prepared, monkeypatch):
    asked = answers(monkeypatch, (["below"], 9.0), ([], 1.0))
    found = calibrate(prepared)
    assert found["chosen"] == asked[1] == {"lr": prepared.method.options.lr, "steps": 6, "decay_steps": 180}
    assert asked[1]["lr"] == method().options.lr / 2
    assert [trial["missed"] for trial in found["tried"]] == [["below"], []]
    assert found["missed"] == []
    hashes = {one.track.sha256 for one in prepared.retain}
    assert set(found["decoys"]) < hashes


def test_where_none_pass_it_is_the_one_that_misses_least(prepared, monkeypatch):
    error = EncoreError("the loss was not finite")
    answers(monkeypatch, (["a", "b"], 1.0), (["a"], 3.0), error, (["c"], 2.0))
    found = calibrate(prepared)
    assert len(found["tried"]) == 3
    assert found["missed"] == ["c"]
    assert prepared.method.options.steps == 6
    answers(monkeypatch, *4 * [(["a"], float("inf"))])
    assert calibrate(prepared)["tried"][0]["score"] is None  # JSON has no infinity
    answers(monkeypatch, error, error, error, error)
    with pytest.raises(EncoreError, match="every rehearsal failed, the last one because the loss was not finite"):
        calibrate(prepared)


def test_the_run_has_the_settings_and_the_record_and_resuming_it_rehearses_nothing(prepared, monkeypatch):
    answers(monkeypatch, (["below"], 9.0), ([], 1.0))
    prepared.calibration = calibrate(prepared)
    chosen = dict(prepared.calibration["chosen"])
    run = forget(prepared, dict.fromkeys(chosen, "calibration"))
    assert run["calibration"] == prepared.calibration
    assert run["options"]["lr"] == {"value": chosen["lr"], "from": "calibration"}
    asked = json.loads(Path("run/request.json").read_text())
    assert asked["calibration"] == run["calibration"]
    Path("run/run.json").unlink()

    answers(monkeypatch)  # a rehearsal would find no answer
    request = ForgetConfig(**{**vars(prepared.request), "resume": True})
    resumed = prepare(request, restored(request, method()))
    assert resumed.method.options.lr == chosen["lr"]
    resumed.calibration = calibrate(resumed)
    assert expected_seconds(resumed, 10.0) == (0.0, 0.0)
    assert forget(resumed, {})["unlearned_sha256"] == run["unlearned_sha256"]

    Path("run/run.json").unlink()
    del asked["calibration"]
    Path("run/request.json").write_text(json.dumps(asked))
    with pytest.raises(UsageError, match="was started without --calibrate"):
        restored(request, method())
    for broken in ([], {"calibration": 3}, {"calibration": {"chosen": {}}}):
        Path("run/request.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match=r"request\.json"):
            restored(request, method())


def test_what_it_takes_is_a_run_to_all_of_the_ladder(prepared):
    assert expected_seconds(prepared, 10.0) == (10.0, 10.0 + 20.0 + 10.0 + 20.0)
    assert expected_seconds(prepared, 10.0, given=["lr"]) == (10.0, 10.0 + 20.0)
    assert expected_seconds(prepared, 10.0, given=["lr", "steps"]) == (10.0, 10.0)


def test_without_tracks_to_keep_or_to_compare_with_there_is_no_rehearsal(prepared):
    kept, held_out = prepared.retain, prepared.holdout
    prepared.retain = kept[:2]
    with pytest.raises(UsageError, match="from retain, and there are too few: 2"):
        calibrate(prepared)
    prepared.retain, prepared.holdout = kept, []
    with pytest.raises(UsageError, match="compares with held-out tracks"):
        expected_seconds(prepared, 1.0)
    prepared.holdout = held_out
    prepared.request = ForgetConfig(**{**vars(prepared.request), "retain": "self"})
    with pytest.raises(UsageError, match="rehearses on tracks from retain"):
        calibrate(prepared)


def test_on_the_command_line(call, studio, monkeypatch):
    torch.set_num_threads(1)
    music = studio / "music"
    flags = [
        "forget", "--tracks", music / "forget.txt", "--model", studio / "model", "--retain", music / "retain.txt",
        "--holdout", music / "holdout.txt", "--method", "graddiff", "--steps", "2", "--out", "run", "--calibrate",
    ]  # fmt: skip
    shown = call(*flags, "--dry-run")
    assert shown.code == 0, shown.err
    assert "if the first settings pass, at most" in shown.out
    assert not Path("run").exists()
    plan = json.loads(call(*flags, "--dry-run", "--json").out)
    assert plan["expected_calibration_seconds"][0] < plan["expected_calibration_seconds"][1]
    done = call(*flags)
    assert done.code in (0, 4), done.err  # two steps reach no target
    told = json.loads(Path("run/run.json").read_text())
    assert 1 <= len(told["calibration"]["tried"]) <= 3
    assert f"rehearsal {len(told['calibration']['tried'])} of at most 3: lr " in done.err
    assert "calibration: lr " in done.err
    assert told["options"]["lr"] == {"value": told["calibration"]["chosen"]["lr"], "from": "calibration"}
    assert told["options"]["steps"] == {"value": 2, "from": "cli"}, "what the user set is kept"
    again = call(*flags, "--resume")
    assert "nothing to do" in again.err
