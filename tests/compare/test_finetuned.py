"""The preset `finetuned`: which models it trains, on which tracks, and a whole bench on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soundfile

from encore import assets
from encore.cli.bench import _train
from encore.compare.finetuned import check_models, finetuned, model_trials, train_model, untrained, with_golds
from encore.compare.matrix import matrix_lines
from encore.compare.plan import Plan, Pretrained, Trial, check_plan, plan_tracks, unfinished, write_plan
from encore.compare.trial import run_trial
from encore.errors import GateError, UsageError
from encore.reporter import Reporter
from encore.stop_signals import Interrupted
from encore.store.metrics_json import read_metrics
from encore.unlearn.engine import Loop


@pytest.fixture
def plain(studio: Path) -> Plan:
    """A bench of two tracks of one window and a longer one to forget, and three to keep; without the preset."""
    music = studio / "music"
    return Plan(
        methods={"graddiff": ("steps=2",)}, seeds=(0,), model=str(studio / "model"), tracks=str(music / "forget.txt"),
        retain=str(music / "retain.txt"), holdout=str(music / "holdout.txt"), metrics=("nll", "kl_gold"),
    )  # fmt: skip


def laid(plan: Plan, out: Path) -> Plan:
    """The plan as the command line makes it."""
    plan = finetuned(plan, out, ("epochs=2", "batch_size=3"))
    return with_golds(plan, out, check_plan(plan, out))


def changed(plan: Plan, **changes: object) -> Plan:
    return plan.model_copy(update=changes)


@pytest.fixture
def studio_plan(plain: Plan, tmp_path: Path) -> Plan:
    return laid(plain, tmp_path / "bench")


def listing(folder: Path, *files: Path, name: str = "mine.txt") -> str:
    """A list of files in `folder`, which are copied there."""
    for file in files:
        shutil.copy(file, folder)
    path = folder / name
    path.write_text("".join(f"{file.name}\ta caption of this list\n" for file in files))
    return str(path)


def test_the_plan_is_one_on_models_of_the_benchs_own(studio_plan: Plan, studio: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench"
    assert studio_plan.pretrained is not None
    assert studio_plan.pretrained.model == str(studio / "model")
    assert studio_plan.model == str(out / "base/seed-0")
    assert studio_plan.golds == {"gold": str(out / "gold/seed-0"), "gold2": str(out / "gold/seed-1")}
    assert [trial.name for trial in model_trials(studio_plan)] == ["base/seed-0", "gold/seed-0", "gold/seed-1"]
    assert check_plan(studio_plan, out)  # before anything is trained
    assert not out.exists()
    assert model_trials(studio_plan.model_copy(update={"pretrained": None})) == []


def test_slurm_trains_base_and_golds_before_the_methods(studio_plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "bench"
    write_plan(studio_plan, out)
    assert not _train(studio_plan, out, plan_tracks(studio_plan, out), None, "slurm", {"partition": "gpu"})
    script = (out / "slurm-1.sh").read_text()
    assert all(trial.name in script for trial in model_trials(studio_plan))
    assert "graddiff" not in script


def test_every_list_has_golds_of_its_own(plain: Plan, tmp_path: Path) -> None:
    plan = laid(changed(plain, forget_sizes=(2,)), tmp_path / "bench")
    assert [trial.name for trial in model_trials(plan)] == ["base/seed-0", "2/gold/seed-0", "2/gold/seed-1"]
    assert plan.golds == {}
    assert plan.list_golds["2"]["gold2"] == str(tmp_path / "bench/2/gold/seed-1")


def test_lists_of_the_same_tracks_have_the_same_golds(plain: Plan, studio: Path, tmp_path: Path) -> None:
    out, music = tmp_path / "bench", studio / "music"
    same = listing(tmp_path, *(music / f"{name}.wav" for name in ("long", "one", "two")))  # as in forget.txt
    plan = changed(plain, requests=(1, 2), lists={"x": same, "y": same}, forget_sizes=(2, 3))
    whole = {"gold": str(out / "gold/seed-0"), "gold2": str(out / "gold/seed-1")}
    two = {"gold": str(out / "2/gold/seed-0"), "gold2": str(out / "2/gold/seed-1")}
    first = laid(plan, out)
    assert first.golds == whole
    assert first.list_golds == {"2": two, "3": whole, "x": whole, "y": whole}
    assert [trial.name for trial in model_trials(first)] == [
        "base/seed-0", "gold/seed-0", "gold/seed-1", "2/gold/seed-0", "2/gold/seed-1",
    ]  # fmt: skip

    (out / "y/gold/seed-0").mkdir(parents=True)  # those that are there are used
    again = laid(plan, out)
    assert again.golds["gold"] == again.list_golds["3"]["gold"] == str(out / "y/gold/seed-0")
    assert model_trials(again) == [Trial(name, seed, list=own) for name, seed, own in (
        ("base", 0, ""), ("gold", 0, "2"), ("gold", 1, "2"), ("gold", 0, "y"), ("gold", 1, "y"),
    )]  # fmt: skip


def test_requests_one_after_another_begin_at_base_and_end_beside_the_gold_of_all(plain: Plan, tmp_path: Path) -> None:
    out = tmp_path / "bench"
    with_lists = laid(changed(plain, requests=(1, 2), forget_sizes=(1,)), out)
    assert [trial.list for trial in model_trials(with_lists)] == ["", "", "", "1a", "1a", "1b", "1b", "1c", "1c"]
    plan = laid(changed(plain, requests=(2,)), out)
    write_plan(plan, out)
    whole = plan_tracks(plan, out)
    (trial,) = plan.trials
    for model in model_trials(plan):
        run_trial(out, model.name, Reporter())
    run_trial(out, trial.name, Reporter())
    base = json.loads((out / "base/seed-0/run.json").read_text())
    first, second = (json.loads((out / trial.name / number / "request.json").read_text()) for number in "12")
    assert first["model"]["sha256"] == base["trained_sha256"] != second["model"]["sha256"]
    evaluation = json.loads((out / trial.name / "evaluation.json").read_text())
    gold = json.loads((out / "gold/seed-0/run.json").read_text())
    assert evaluation["models"]["gold"] == gold["trained_sha256"]
    assert evaluation["models"]["base"] == base["trained_sha256"]
    values = {
        row.model: row.value for row in read_metrics(out / trial.name / "metrics.json") if row.metric == "kl_gold"
    }
    assert values["unlearned"]
    assert not list(unfinished(plan, out, whole))


def test_a_list_by_name_is_a_part_of_what_base_is_trained_on(plain: Plan, studio: Path, tmp_path: Path) -> None:
    """One track to forget and one to keep, the second also as a FLAC among those to keep."""
    out, music = tmp_path / "bench", studio / "music"
    samples, rate = soundfile.read(music / "four.wav", dtype="float32")
    soundfile.write(tmp_path / "four.wav", samples, rate, subtype="PCM_16")
    samples, rate = soundfile.read(tmp_path / "four.wav", dtype="int16")
    soundfile.write(tmp_path / "copy.flac", samples, rate, subtype="PCM_16")
    keep = listing(tmp_path, music / "five.wav", name="keep.txt")
    Path(keep).write_text("four.wav\ta\ncopy.flac\tb\nfive.wav\tc\n")
    mine = listing(tmp_path, music / "one.wav")
    with Path(mine).open("a") as file:
        file.write("four.wav\tanother caption\n")
    plan = laid(changed(plain, retain=keep, lists={"mine": mine}), out)
    write_plan(plan, out)
    whole = plan_tracks(plan, out)
    for model in model_trials(plan):
        run_trial(out, model.name, Reporter())
    requests = {trial.name: json.loads((out / trial.name / "request.json").read_text()) for trial in model_trials(plan)}
    ids = {
        name: tuple([track["id"] for track in request[key]] for key in ("retain", "left_out"))
        for name, request in requests.items()
    }
    assert ids["base/seed-0"] == (["one.wav", "two.wav", "long.wav", "four.wav", "copy.flac", "five.wav"], [])
    gold = (["five.wav", "two.wav", "long.wav"], ["one.wav", "four.wav"])
    assert ids["mine/gold/seed-0"] == ids["mine/gold/seed-1"] == gold
    captions = {track["id"]: track["caption"] for track in requests["base/seed-0"]["retain"]}
    assert [track["caption"] for track in requests["mine/gold/seed-0"]["left_out"]] == [
        captions["one.wav"], captions["four.wav"],
    ]  # fmt: skip

    (trial,) = unfinished(plan, out, whole)
    assert trial.name == "mine/graddiff/seed-0"
    run_trial(out, trial.name, Reporter())
    request = json.loads((out / trial.name / "request.json").read_text())
    assert tuple([track["id"] for track in request[key]] for key in ("retain", "forget")) == gold
    evaluation = json.loads((out / trial.name / "evaluation.json").read_text())
    assert evaluation["golds"] == plan.list_golds["mine"]
    (line,) = matrix_lines(plan, out, whole)
    assert (line.list, line.tracks, line.note) == ("mine", 2, "")
    assert line.median("KL(gold ‖ model), forget: ≤ 1.25 × noise") is not None
    assert not list(unfinished(plan, out, whole))
    assert untrained(plan, out, whole) == []

    Path(mine).write_text("one.wav\ta\n")  # the list's golds are of other tracks now
    with pytest.raises(UsageError, match="other retain tracks"):
        untrained(plan, out, whole)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ("one", "seven", "eight"),
            "the list mine names seven.wav and 1 more, and base is trained on --tracks and retain alone",
        ),
        (("one", "two", "long", "four", "five", "six"), "the list mine has all tracks"),
    ],
)
def test_lists_that_no_gold_can_be_trained_for(
    files: tuple[str, ...], message: str, plain: Plan, studio: Path, tmp_path: Path
) -> None:
    mine = listing(tmp_path, *(studio / f"music/{name}.wav" for name in files))
    with pytest.raises(UsageError, match=message):
        laid(changed(plain, lists={"mine": mine}), tmp_path / "bench")
    assert not (tmp_path / "bench").exists()


def test_the_embedded_model_has_its_catalogue(tmp_path: Path) -> None:
    plan = finetuned(Plan(methods={"ga": ()}, seeds=(0,)), tmp_path / "bench", ("from_scratch=true",))
    tracks = check_plan(plan, tmp_path / "bench")
    assert (plan.tracks, plan.catalog) == (str(assets.FORGET), str(assets.CATALOG))
    assert (len(tracks.forget), len(tracks.holdout)) == (8, 10)
    assert len(tracks.retain) > 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"golds": {"gold": "tiny-gold"}}, "trains its own golds"),
        ({"retain": "self"}, "trains on the tracks to keep"),
        ({"lists": {"base": "/mine.txt"}}, "is a folder of the bench"),
        ({"methods": {"gold": ()}}, "is a folder of the bench"),
    ],
)
def test_what_can_not_be_trained_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    plan = Plan(methods={"ga": ()}, seeds=(0,)).model_copy(update=change)
    with pytest.raises(UsageError, match=message):
        finetuned(plan, tmp_path)
    with pytest.raises(UsageError, match="epoch"):
        finetuned(Plan(methods={"ga": ()}, seeds=(0,)), tmp_path, ("epoch=3",))


def test_without_tracks_to_keep_there_is_no_gold(studio: Path, tmp_path: Path) -> None:
    plan = Plan(
        methods={"ga": ()}, seeds=(0,), model=str(studio / "model"), tracks=str(studio / "music/forget.txt")
    )  # fmt: skip
    with pytest.raises(UsageError, match="no tracks to keep"):
        check_plan(finetuned(plan, tmp_path / "bench"), tmp_path / "bench")


def test_a_bench_trains_measures_and_is_done_once(
    studio_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bench"
    write_plan(studio_plan, out)
    tracks = plan_tracks(studio_plan, out)
    models = untrained(studio_plan, out, tracks)
    assert models == model_trials(studio_plan)
    for trial in models:
        assert run_trial(out, trial.name, Reporter()) == trial
    assert untrained(studio_plan, out, tracks) == []
    with monkeypatch.context() as patched:
        patched.setattr("encore.store.environment._cpu_has_bf16", lambda: True)
        patched.setattr("encore.store.environment.LARGE", 0)
        assert untrained(studio_plan, out, tracks) == []  # what auto chose then followed from the model
        with pytest.raises(UsageError, match="precision"):
            untrained(studio_plan.model_copy(update={"precision": "bf16"}), out, tracks)
    assert check_models(studio_plan, out) == []

    requests = {trial.name: json.loads((out / trial.name / "request.json").read_text()) for trial in models}
    forget, keep = ([track.id for track in side] for side in (tracks.forget, tracks.retain))
    assert [entry["id"] for entry in requests["base/seed-0"]["retain"]] == [*forget, *keep]
    for name in ("gold/seed-0", "gold/seed-1"):
        assert [entry["id"] for entry in requests[name]["retain"]] == keep
        assert [entry["id"] for entry in requests[name]["left_out"]] == forget
    assert [requests[trial.name]["seed"] for trial in models] == [0, 0, 1]

    (trial,) = unfinished(studio_plan, out, tracks)
    run_trial(out, trial.name, Reporter())
    base = json.loads((out / "base/seed-0/run.json").read_text())
    run = json.loads((out / trial.name / "request.json").read_text())
    assert run["model"]["sha256"] == base["trained_sha256"]
    rows = {(row.metric, row.model) for row in read_metrics(out / trial.name / "metrics.json") if row.value is not None}
    assert rows >= {("nll", "base"), ("nll", "gold"), ("kl_gold", "unlearned"), ("kl_gold", "gold2")}
    assert not list(unfinished(studio_plan, out, tracks))

    pretrained = Pretrained(model=str(studio_plan.pretrained.model), options=("epochs=3",))  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="another recipe"):
        untrained(studio_plan.model_copy(update={"pretrained": pretrained}), out, tracks)


def test_a_base_that_has_not_memorised_ends_the_bench_and_a_gold_that_has_is_noted(
    studio_plan: Plan, tmp_path: Path
) -> None:
    out = tmp_path / "bench"

    def record(trial: Trial, enough: bool, known: int = 0) -> None:
        outcome = {
            "steps": 9, "memorised": enough,
            "trained": {"memorised": 1, "measured": 3, "nll_before": 5.0, "nll_after": 4.0},
            "left_out": {"memorised": known},
        }  # fmt: skip
        folder = out / trial.name
        folder.mkdir(parents=True, exist_ok=True)
        options = {"epochs": {"value": None, "from": "default"}}
        (folder / "run.json").write_text(json.dumps({"options": options, "outcome": outcome}))

    trials = model_trials(studio_plan)
    for trial in trials:
        record(trial, True)
    record(trials[1], True, known=2)
    (note,) = check_models(studio_plan, out)
    assert "gold/seed-0 has memorised 2 of the tracks" in note
    record(trials[0], False)
    with pytest.raises(GateError, match="base/seed-0: after 9 steps the model has memorised 1 of 3"):
        check_models(studio_plan, out)


def test_a_stopped_model_goes_on(studio_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, (base, *_) = tmp_path / "bench", model_trials(studio_plan)
    write_plan(studio_plan, out)
    tracks = plan_tracks(studio_plan, out)
    backward = Loop._backward

    def stop_at_the_second(self: Loop, *given: object) -> object:
        if given[0].index == 1:
            self.engine.stop.number = 15
        return backward(self, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_backward", stop_at_the_second)
        with pytest.raises(Interrupted):
            train_model(studio_plan, base, out, tracks, Reporter())
    assert base in untrained(studio_plan, out, tracks)
    train_model(studio_plan, base, out, tracks, Reporter())
    log = [json.loads(line) for line in (out / base.name / "log.jsonl").read_text().splitlines()]
    assert {"event": "resumed", "phase": 1, "step": 2}.items() <= next(
        line for line in log if line.get("event") == "resumed"
    ).items()
    assert base not in untrained(studio_plan, out, tracks)
