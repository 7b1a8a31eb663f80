"""Faults of one of several processes: all stop, one message is printed, and the run can be resumed (fault 25)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Done
from tests.ranks import launch

from encore.cli import app

Call = Callable[..., Done]

# `encore`, with a fault in the n-th call of a function on one rank.
COMMAND = """
import importlib, json, signal
from encore.cli import app
from encore.errors import InputError

fault, arguments = map(json.loads, sys.argv[3:5])

def act(kind):
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif kind == "memory":
        raise torch.OutOfMemoryError("not that many")
    else:
        raise InputError("this disk is broken", "buy another")

if fault and rank == fault["rank"]:
    module, _, path = fault["at"].partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), 0
    def faulty(*given, **more):
        global calls
        calls += 1
        if calls == fault["call"]:
            act(fault["does"])
        return real(*given, **more)
    setattr(owner, name, faulty)
sys.argv = ["encore", *arguments]
app.main()
"""
STEPS = 6


def command(studio: Path) -> list[str]:
    """A run of six steps with a checkpoint in each."""
    music = studio / "music"
    flags = {
        "tracks": music / "forget.txt", "retain": music / "retain.txt", "holdout": music / "holdout.txt",
        "model": studio / "model", "method": "npo", "steps": STEPS, "out": "run", "device": "cpu",
    }  # fmt: skip
    options = ("checkpoint_seconds=0", "eval_every=2", "stop=never", "select=last")
    return [
        "forget",
        *(str(word) for name, value in flags.items() for word in (f"--{name}", value)),
        *(word for option in options for word in ("-o", option)),
    ]


@pytest.fixture
def arguments(studio: Path) -> list[str]:
    return command(studio)


def run(count: int, arguments: list[str], fault: dict[str, Any] | None = None) -> list[tuple[int, str]]:
    return launch(COMMAND, count, Path.cwd(), json.dumps(fault), json.dumps(arguments))


def weights() -> dict[str, torch.Tensor]:
    return load_file("run/model/model.safetensors")


def same(straight: dict[str, torch.Tensor]) -> None:
    for name, value in weights().items():
        torch.testing.assert_close(value, straight[name], rtol=0, atol=2e-5)


def finished(code: int) -> bool:
    return code in (0, 4)  # 4: such a short run misses its targets


@pytest.fixture(scope="module")
def straight(_studio: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that one process ends with."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ENCORE_CACHE", str(_studio / "cache"))
        patched.chdir(folder)
        assert finished(app.run(command(_studio)))
    return load_file(folder / "run/model/model.safetensors")


POINTS: dict[str, dict[str, Any]] = {
    "first snapshot": {"rank": 1, "at": "encore.unlearn.monitor:track_nll", "call": 2},
    "step": {"rank": 1, "at": "encore.unlearn.engine:Loop._backward", "call": 4},
    "checkpoint": {"rank": 0, "at": "encore.unlearn.loop_checkpoint:save_file", "call": 9},
    "reduction": {"rank": 0, "at": "encore.distributed:add_gradients", "call": 3},
    "saving": {"rank": 0, "at": "encore.backends.musicgen:MusicgenBackend.save", "call": 1},
}


@pytest.mark.parametrize(
    ("point", "ranks"),
    [pytest.param(point, 1 + i % 3, marks=pytest.mark.slow if i != 1 else ()) for i, point in enumerate(POINTS)],
)
def test_a_killed_rank_stops_all_and_the_run_resumes(
    arguments: list[str], straight: dict[str, torch.Tensor], call: Call, point: str, ranks: int
) -> None:
    fault = POINTS[point]
    results = run(2, arguments, {**fault, "does": "kill"})
    assert results[fault["rank"]][0] == -9
    code, errors = results[1 - fault["rank"]]
    assert code == 1, errors
    assert errors.count("error: a process of this run ended") == 1
    assert "--resume" in errors
    assert not Path("run/run.json").exists()
    again = [*arguments, "--resume"]
    if ranks == 1:
        assert finished(call(*again).code)
    else:
        assert all(finished(code) for code, _ in run(ranks, again))
    same(straight)


def test_an_error_of_one_rank_is_printed_once_and_is_the_exit_code_of_all(arguments: list[str]) -> None:
    results = run(2, arguments, {**POINTS["step"], "does": "raise"})
    assert [code for code, _ in results] == [3, 3]
    (_, quiet), (_, loud) = results
    assert "error" not in quiet
    assert loud == "error: process 1 of 2: this disk is broken\nhint: buy another\n"
    # A fault that all ranks have is told by the first.
    results = run(2, [*(word.replace("forget.txt", "missing.txt") for word in arguments), "--out", "other"])
    assert [code for code, _ in results] == [3, 3]
    assert results[0][1].count("error:") == 1
    assert results[1][1] == ""


@pytest.mark.slow
def test_a_dry_run_measures_in_all_processes(arguments: list[str]) -> None:
    results = run(2, [*arguments, "--dry-run"])
    assert [code for code, _ in results] == [0, 0], results
    assert "nothing was written" in results[0][1]
    assert results[1][1] == ""


def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(
    arguments: list[str], straight: dict[str, torch.Tensor], call: Call
) -> None:
    results = run(2, arguments, {**POINTS["step"], "does": "term"})
    assert [code for code, _ in results] == [143, 143]
    assert "stopped by SIGTERM; continue with the same command and --resume" in results[0][1]
    assert results[1][1] == ""
    assert finished(call(*arguments, "--resume").code)
    resumed = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in resumed if line.get("event") == "resumed"] == [4]
    same(straight)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [((2, ["--fsdp"]), (1, [])), ((1, []), (3, ["--fsdp"]))], ids=str)
def test_a_checkpoint_of_split_weights_is_one_of_whole_weights(
    arguments: list[str], straight: dict[str, torch.Tensor], before: tuple[int, list[str]], after: tuple[int, list[str]]
) -> None:
    count, flags = before
    killed = run(count, [*arguments, *flags], {**POINTS["step"], "rank": count - 1, "does": "kill"})
    assert killed[count - 1][0] == -9
    count, flags = after
    results = run(count, [*arguments, *flags, "--resume"])
    assert all(finished(code) for code, _ in results), results
    lines = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("event") == "resumed"] == [3]
    same(straight)


@pytest.mark.slow
def test_out_of_memory_on_one_rank_halves_the_micro_batch_on_all(
    arguments: list[str], straight: dict[str, torch.Tensor]
) -> None:
    results = run(2, arguments, {**POINTS["step"], "does": "memory"})
    assert all(finished(code) for code, _ in results), results
    lines = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [line["micro_batch_size"] for line in lines if line.get("event") == "out of memory"] == [8]
    same(straight)


@pytest.mark.slow
def test_one_run_with_one_table(arguments: list[str], straight: dict[str, torch.Tensor]) -> None:
    results = run(2, arguments)
    assert all(finished(code) for code, _ in results), results
    assert results[0][1].count("NLL before") == 1
    assert results[1][1] == ""
    assert json.loads(Path("run/run.json").read_text())["hardware"]["processes"] == 2
    same(straight)


@pytest.mark.slow
def test_torchrun_and_its_signals(arguments: list[str]) -> None:
    """The real launcher: one run; SIGTERM leaves a checkpoint."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "encore"]
    long = [word if word != str(STEPS) else "100000" for word in arguments]
    started = subprocess.Popen([*torchrun, *long], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 200
    while not any(Path("run").glob("checkpoints/*/manifest.json")) and time.monotonic() < until:
        time.sleep(0.1)
    started.terminate()
    _, errors = started.communicate(timeout=60)
    assert started.returncode != 0
    assert errors.count("stopped by SIGTERM; continue with") == 1, errors
    assert any(Path("run").glob("checkpoints/*/manifest.json"))
