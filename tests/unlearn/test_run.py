"""Preparing and recording a run, as a library; the command line's tests run it whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from encore.api import Method
from encore.errors import EncoreError, GateError, InputError, UsageError
from encore.methods.graddiff import GradDiff
from encore.plugins import methods
from encore.stop_signals import StopFlag, stop_on_signals
from encore.store.model_name import model_name
from encore.unlearn.config import ForgetConfig
from encore.unlearn.engine import Engine, TrainResult
from encore.unlearn.estimate import estimate
from encore.unlearn.monitor import Snapshot
from encore.unlearn.records import check_other_run, run_json
from encore.unlearn.run import Prepared, check_missed, choose, forget, prepare


@pytest.fixture
def request_(studio: Path) -> ForgetConfig:
    music = studio / "music"
    return ForgetConfig(
        music / "forget.txt", Path("run"), model=str(studio / "model"), retain=str(music / "retain.txt"),
        holdout=music / "holdout.txt",
    )  # fmt: skip


def graddiff(**options: object) -> GradDiff:
    chosen = methods().resolve("graddiff")
    return chosen(chosen.Options(**{"steps": 2, "stop": "never"} | options))  # type: ignore[return-value]


@pytest.fixture
def prepared(request_: ForgetConfig) -> Prepared:
    return prepare(request_, graddiff())


def test_prepare_writes_nothing_and_knows_what_a_run_takes(prepared: Prepared) -> None:
    assert not list(Path.cwd().iterdir())
    assert [len(heard.clips) for heard in prepared.forget] == [1, 1, 3]
    assert prepared.precision == "fp32"
    short = estimate(prepared)
    long = estimate(replace(prepared, method=graddiff(steps=2000)))
    assert long.seconds > 10 * short.seconds > 0
    assert short.peak_bytes > 5 * 4 * sum(weight.numel() for weight in prepared.backend.module.parameters())
    assert prepared.disk_bytes() > replace(prepared, request=replace(prepared.request, resume=True)).disk_bytes()
    averaging = replace(prepared, method=graddiff(schedule="adaptive"))  # a fifth copy of the weights a checkpoint
    assert averaging.disk_bytes() > prepared.disk_bytes()


def test_a_library_run_returns_what_run_json_holds(prepared: Prepared) -> None:
    run = forget(prepared, {"steps": "cli"})
    assert run == json.loads(Path("run/run.json").read_text())
    assert run["options"]["steps"]["from"] == "cli"
    check_missed(run)


def test_a_run_of_some_of_its_lists_tracks_tells_how_many_there_are(request_: ForgetConfig) -> None:
    tracks = choose(request_)
    part = replace(tracks, forget=tracks.forget[:1])
    told = forget(prepare(request_, graddiff(), tracks=part), {})["tracks"]
    assert (told["forget"], told["listed"]) == (1, 3)


def test_a_resumed_run_costs_what_all_its_processes_took(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    def earlier(engine: Engine, method: Method) -> TrainResult:
        outcome = engine_run(engine, method)
        outcome.earlier_seconds = 1000.0
        return outcome

    engine_run = Engine.run
    monkeypatch.setattr(Engine, "run", earlier)
    told = forget(prepared, {})
    assert 1000 < told["timings"]["forget"] < 1900
    assert told["cost"]["seconds"] == told["timings"]["forget"]
    assert 0 < told["cost"]["tokens_per_second"] < 10


def test_run_json_is_written_after_all_else(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> None:
        raise EncoreError("no")

    monkeypatch.setattr(prepared.backend, "save", broken)
    with pytest.raises(EncoreError, match="no"):
        forget(prepared, {})
    assert {path.name for path in Path("run").iterdir()} - {".lock"} == {"request.json", "log.jsonl"}
    with pytest.raises(InputError, match="did not finish"):
        model_name("run")


def test_a_signal_before_the_first_step(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    class Set(StopFlag):
        number = 15

        def __init__(self) -> None: ...

    monkeypatch.setattr("encore.stop_signals.StopFlag", Set)
    with stop_on_signals() as stop:
        assert stop
    with pytest.raises(SystemExit) as caught:
        forget(prepared, {})
    assert caught.value.code == 143
    assert not Path("run/run.json").exists()


def test_choose_comes_before_the_model(request_: ForgetConfig) -> None:
    tracks = choose(replace(request_, model="nobody/knows"))
    assert [track.id for track in tracks.forget] == ["one.wav", "two.wav", "long.wav"]
    with pytest.raises(UsageError, match="needs tracks to keep"):
        prepare(replace(request_, retain=None, model="nobody/knows"), graddiff())


def look(part: str, nll: float | None) -> Snapshot:
    return Snapshot({"a": 1.0}, **{part: {} if nll is None else {"b": nll}})


@pytest.mark.parametrize("part", ["memorised", "not_memorised"])
@pytest.mark.parametrize(
    ("unit", "before", "after", "collapsed"),
    [
        ("nats/token", 1.0, 1.5, False), ("nats/token", 1.0, 2.5, True), ("loss", 0.5, 0.625, False),
        ("nats/token", 1.0, float("nan"), True), ("nats/token", None, None, False), ("loss", 0.5, 0.875, True),
    ],
)  # fmt: skip
def test_collapse_is_what_retain_lost(
    part: str, unit: str, before: float | None, after: float | None, collapsed: bool
) -> None:
    asked = {"model": {}, "method": "x", "options": {}, "seed": 0, "precision": "fp32", "forget": [], "retain": []}
    outcome = TrainResult(before=look(part, before), best=look(part, after))
    run = run_json(asked | {"holdout": []}, unit=unit, flags={}, origins={}, outcome=outcome, notes=[])
    json.dumps(run, allow_nan=False)
    assert run["outcome"]["collapsed"] is collapsed
    if collapsed:
        with pytest.raises(GateError, match="no longer"):
            check_missed(run)


def test_another_run_is_refused_in_few_words(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    tracks = [{"id": f"t{i}"} for i in range(9)]
    asked = {"options": {"lr": 1, "steps": 2}, "forget": tracks, "seed": 0}
    file.write_text(json.dumps({"folder": "x", **asked}))
    check_other_run(file, asked | {"forget": [{**track, "file": "elsewhere", "line": 3} for track in tracks]})
    with pytest.raises(UsageError, match=r"options: steps 2 -> 3; forget: t0, t1, t2, t3, t4 and 4 more no longer"):
        check_other_run(file, asked | {"options": {"lr": 1, "steps": 3}, "forget": []})
    for text in ("{", "[]", "{}"):
        file.write_text(text)
        with pytest.raises(InputError, match=r"can't be read|is not a JSON object"):
            check_other_run(file, asked)


def test_a_fisher_is_kept_between_runs(request_: ForgetConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path / "cache"))
    chosen = methods().resolve("ssd")
    runs, stages = [], []
    for name in ("first", "second"):
        asked = replace(request_, out=Path(name))
        ready = prepare(asked, chosen(chosen.Options(alpha=1.2)))
        assert estimate(ready).seconds > estimate(replace(ready, method=graddiff(steps=1))).seconds / 10
        runs.append(forget(ready, {}))
        log = Path(name, "log.jsonl")  # not there where nothing was worth a line
        stages.append([json.loads(line).get("stage") for line in log.read_text().splitlines()] if log.exists() else [])
    assert "fisher" in stages[0]
    assert "fisher" not in stages[1]
    assert runs[0]["unlearned_sha256"] == runs[1]["unlearned_sha256"] != runs[0]["model"]["sha256"]
