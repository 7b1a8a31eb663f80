"""`encore bench`, and the processes it starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.forked import Forked

from encore import plugins
from encore.cli.bench import _installed
from encore.compare import scheduler


def flags(studio: Path, out: Path, *more: object) -> list[str]:
    music = studio / "music"
    given = [
        "bench", "--out", out, "--model", studio / "model", "--tracks", music / "forget.txt", "--retain",
        music / "retain.txt", "--holdout", music / "holdout.txt", "--metrics", "nll,verbatim", *more,
    ]  # fmt: skip
    return [str(item) for item in given]


def test_what_is_wrong_is_told_before_anything_is_written(call, studio, tmp_path):
    for more, code, told in (
        (["--methods", "gaa"], 2, "gaa"),
        (["--methods", "ga", "-o", "npo.beta=1"], 2, "'npo.beta=1' is not METHOD.KEY=VALUE"),
        (["--methods", "ga", "-o", "ga.stps=1"], 2, "stps"),
        (["--methods", ","], 2, "--methods names nothing"),
        (["--methods", "ga", "--gold2", "x"], 2, "--gold2 is compared with --gold"),
        (["--methods", "ga", "--preset", "encore"], 2, "no preset 'encore'"),
        (["--methods", "ga", "--full"], 2, "--full means all metrics"),
        (["--methods", "ga", "--backend", "abacus"], 2, "abacus"),
        (["--methods", "ga", "--embedder", "clpa"], 2, "clpa"),
        (["--methods", "ga", "--precision", "fp23"], 2, "fp23"),
        (["--methods", "ga", "--tracks", "nowhere.txt"], 3, "nowhere.txt"),
        (["--methods", "ga", "--forget-sizes", "1,x"], 2, "'1,x' is not a list of sizes"),
        (["--methods", "ga", "--forget-sizes", "99"], 2, "the list 99 can't be sampled from"),
        (["--methods", "ga", "--list", "heard"], 2, "the list 'heard' is not NAME=FILE"),
        (["--methods", "ga", "--list", "a=x", "--list", "a=y"], 2, "is given twice"),
        (["--methods", "ga", "--list", "a=nowhere.txt"], 3, "nowhere.txt"),
        (["--methods", "ga", "--gold", "heard=tiny-gold"], 2, "there is no list 'heard' for --gold"),
        (["--methods", "ga", "--forget-sizes", "2", "--gold2", "2=tiny-gold"], 2, "--gold2 of 2 is compared with"),
        (["--methods", "ga", "--gold", "x", "--gold", "y"], 2, "--gold is given twice"),
        (["--methods", "ga", "--preset", "finetuned", "--gold", "x"], 2, "trains its own golds"),
        (["--methods", "ga", "--preset", "finetuned", "-o", "train.epoch=1"], 2, "no option 'epoch'"),
        (["--methods", "ga", "--preset", "finetuned", "--retain", "self"], 2, "trains on the tracks to keep"),
        (["--methods", "ga", "--preset", "finetuned", "--list", "gold=x.txt"], 2, "gold is a folder of the bench"),
        (["--methods", "ga", "--preset", "finetuned", "--list", "a=nowhere.txt"], 3, "nowhere.txt"),
        (["--methods", "ga", "--preset", "finetuned", "--forget-sizes", "6"], 2, "the list 6 has all tracks"),
        (["--methods", "ga", "-o", "train.epochs=1"], 2, "'train.epochs=1' is not METHOD.KEY=VALUE"),
        (["--methods", "ga", "--launcher", "kubernetes"], 2, "no launcher 'kubernetes'"),
        (["--methods", "ga", "--resource", "num_cpus=1"], 2, "--resource is for --launcher ray or slurm"),
        (["--methods", "ga", "--launcher", "ray", "--resource", "num_cpus"], 2, "'num_cpus' is not KEY=VALUE"),
        (["--methods", "ga", "--launcher", "ray", "--resource", "num_cpus=x"], 2, "num_cpus=x is not an amount"),
        (["--methods", "ga", "--launcher", "slurm", "--resource", "a=1", "--resource", "a"], 2, "is given twice"),
        (["--methods", "ga", "--launcher", "slurm", "--resource", "A=1"], 2, "'A' is not an sbatch option"),
        (["--methods", "ga", "--preset", "no-encore", "-o", "rl.lr=1"], 2, "'rl.lr=1' is not METHOD.KEY=VALUE"),
    ):
        done = call(*flags(studio, tmp_path / "b", *more))
        assert done.code == code, (more, done.err)
        assert told in done.err
        assert "Traceback" not in done.err
    assert not (tmp_path / "b").exists()
    done = call("bench", "--out", tmp_path / "b", "--trial", "ga/seed-0")
    assert done.code == 3
    assert "there is no bench in" in done.err
    done = call("bench", "--out", tmp_path / "b", "--meta")
    assert done.code == 3
    assert "there is no bench in" in done.err
    done = call("bench", "--out", tmp_path / "b", "--meta", "--forget-sizes", "1")
    assert done.code == 2
    assert "--meta takes the bench in --out as it is, without --forget-sizes" in done.err
    for given, flag in ((["--list", "pop=x.txt"], "--list"), (["-o", "ga.steps=1"], "--option")):
        done = call("bench", "--out", tmp_path / "b", "--meta", *given)
        assert f"without {flag}\n" in done.err


def test_by_default_all_methods_that_can_be_had(installed, capsys):
    installed.add(
        "encore-snag", SNAG.replace('encore_snag:Snag")', 'encore_snag:Snag", requires=("no-such-package",))')
    )
    names = _installed("musicgen")
    assert {"ga", "npo", "encore"} <= set(names) == set(plugins.methods().names) - {"snag", "encore-diffusion"}
    told = capsys.readouterr().err
    assert "snag is left out: " in told
    assert "encore-diffusion is left out: is for models without tokens, and musicgen has them" in told


def test_by_default_no_method_that_a_family_lacks_something_for(installed, capsys):
    """A family without tokens, hidden states and outputs, and one with outputs: what each refuses is not tried."""
    installed.add("encore-latent", LATENT)
    without, outputs = _installed("latent"), _installed("tokenless")
    needs = {entry.spec.name: entry.spec.needs for entry in plugins.methods()}
    assert set(outputs) == {name for name, needed in needs.items() if not needed & {"logits", "hidden"}}
    assert set(without) == set(outputs) - {"encore-diffusion"}
    assert "altpo" not in outputs
    told = capsys.readouterr().err
    assert "altpo is left out: needs a token model, and latent is not one" in told
    assert "encore-diffusion is left out: needs a network's outputs at noise levels, and latent gives none" in told


@pytest.mark.slow
def test_a_grid_with_a_method_that_breaks_and_a_table_of_the_rest(call, studio, tmp_path, installed, monkeypatch):
    installed.add("encore-snag", SNAG)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed.folder), *sys.path]))
    start = scheduler.start_process

    def started(command, *rest):  # the plugin's in a process that imports everything, the others in forks
        return start(command, *rest) if "snag" in command[-1] else Forked(command[3:], *rest)

    monkeypatch.setattr(scheduler, "start_process", started)
    command = flags(studio, tmp_path / "b", "--methods", "graddiff,graddiff@one,snag")
    command += ["--seeds", "1", "--jobs", "2", "-o", "graddiff.steps=2", "-o", "graddiff@one.steps=1", "--json"]
    done = call(*command)
    assert done.code == 1, done.err
    assert "1 of 3 trials failed, the first is snag/seed-0" in done.err
    assert "stumbled" in done.err
    told = json.loads(done.out)
    assert {line["label"] for line in told["methods"]} == {"graddiff (steps=2)", "graddiff@one (steps=1)"}
    for name, steps in (("graddiff", 2), ("graddiff@one", 1)):
        run = json.loads((tmp_path / "b" / name / "seed-0/run.json").read_text())
        assert (run["method"], run["options"]["steps"]["value"]) == ("graddiff", steps)
    assert list(told["failed"]) == ["snag/seed-0"]
    assert {path.name for path in (tmp_path / "b").glob("leaderboard.*")} == {
        "leaderboard.md", "leaderboard.csv", "leaderboard.json"
    }  # fmt: skip
    assert (tmp_path / "b/graddiff/seed-0/report.html").exists()
    fewer = flags(studio, tmp_path / "b", "--methods", "graddiff@one", "--seeds", "1", "-o", "graddiff@one.steps=1")
    done = call(*fewer)
    assert done.code == 0, done.err
    assert "1 earlier trial kept, and not in this leaderboard: graddiff/seed-0" in done.err


@pytest.mark.slow
def test_the_preset_finetuned_is_one_command_and_goes_on(call, studio, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "start_process", lambda command, *rest: Forked(command[3:], *rest))
    out = tmp_path / "b"
    command = flags(studio, out, "--preset", "finetuned", "--methods", "graddiff")
    command += ["--seeds", "1", "--jobs", "2", "-o", "graddiff.steps=2", "-o", "train.epochs=2", "--json"]
    done = call(*command)
    assert done.code == 0, done.err
    assert "models to train: 3 of 3" in done.err
    told = json.loads(done.out)
    assert {line["label"] for line in told["references"]} >= {"base", "gold"}
    assert (out / "leaderboard.md").exists()
    made = {path: path.stat().st_mtime_ns for path in out.glob("*/seed-*/run.json")}
    assert len(made) == 4
    again = call(*command)
    assert "models to train: 0 of 3" in again.err
    assert made == {path: path.stat().st_mtime_ns for path in out.glob("*/seed-*/run.json")}
    other = call(*command, "-o", "train.epochs=3")
    assert other.code == 2
    assert "holds another bench: pretrained" in other.err


@pytest.mark.slow
def test_a_signal_stops_every_process_and_the_same_command_goes_on(studio, tmp_path):
    out = tmp_path / "b"
    command = [sys.executable, "-m", "encore", *flags(studio, out, "--methods", "graddiff", "--seeds", "1")]
    command += ["-o", "graddiff.steps=4000", "-o", "graddiff.eval_every=4000"]
    log = out / "graddiff/seed-0/log.jsonl"
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        until(lambda: log.exists() and log.read_text().count("\n") > 3)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert list((out / "graddiff/seed-0/checkpoints").iterdir())
    assert not (out / "graddiff/seed-0/run.json").exists()
    assert not (out / "graddiff/seed-0/.owner").exists()  # nobody works on it any more
    steps = log.read_text().count('"step"')
    again = Forked(command[3:], tmp_path / "again.log")
    until(lambda: log.read_text().count('"step"') > steps + 3)
    again.send_signal(signal.SIGINT)
    assert again.wait(timeout=60) == 130
    assert [json.loads(line)["step"] for line in log.read_text().splitlines() if '"lr"' in line][-1] > steps - 3


def until(true, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to it"
        time.sleep(0.1)


SNAG = """
from encore.api import LossMethod, MethodSpec, hookimpl
from encore.options import TrainOptions


class Snag(LossMethod):
    Options = TrainOptions

    def forget_loss(self, step, batch):
        raise RuntimeError("stumbled")


@hookimpl
def encore_register_methods():
    return [MethodSpec("snag", "raises", "encore_snag:Snag")]
"""

LATENT = """
from encore.api import BackendSpec, hookimpl


@hookimpl
def encore_register_backends():
    return [
        BackendSpec("latent", "no tokens", "tests.latent_model:LatentBackend"),
        BackendSpec("tokenless", "no tokens, but outputs", "encore.testing.fixture:LatentBackend"),
    ]
"""
