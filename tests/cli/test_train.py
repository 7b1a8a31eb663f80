"""`encore train`: the table, the JSON, exit codes, and what is said when it can't be done."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Done
from tests.forked import Forked

from encore import distributed
from encore.unlearn.engine import Loop

Call = Callable[..., Done]


def flags(studio: Path, *more: object) -> list[object]:
    music = studio / "music"
    return ["train", "--model", studio / "model", "--tracks", music / "forget.txt", "--out", "base", *more]


def test_a_base_is_trained_and_shown(studio: Path, call: Call) -> None:
    done = call(*flags(studio, "--epochs", 2, "--batch-size", 2, "--lr", 1e-3))
    assert done.code == 0, done.err
    head, *rows = [line.split() for line in done.out.splitlines() if line.strip("─ ")]
    assert " ".join(head) == "track set NLL before NLL after right tokens"
    assert [row[0] for row in rows] == ["one.wav", "two.wav", "long.wav"]
    assert "train on 3 tracks" in done.err
    assert "3 of 3 tracks trained on: NLL" in done.err
    assert "the model is in base/model" in done.err
    run = json.loads(Path("base/run.json").read_text())
    assert run["options"]["epochs"] == {"value": 2, "from": "cli"}
    assert run["options"]["lr"] == {"value": 1e-3, "from": "cli"}
    assert run["flags"]["out"]["from"] == "cli"

    again = call(*flags(studio, "--epochs", 2, "--batch-size", 2, "--lr", 1e-3, "--resume", "--json"))
    assert (again.code, json.loads(again.out)["finished"]) == (0, run["finished"])  # nothing is done
    generated = call("generate", "slow church organ", "--model", "base", "--seconds", 0.3, "--out", "generated")
    assert generated.code == 0, generated.err
    measured = call("eval", "base")
    assert measured.code == 3
    assert "is a run of `encore train`" in measured.err
    assert "encore eval --model base --tracks LIST" in measured.err
    listed = call("runs", ".", "--json")
    assert [line["method"] for line in json.loads(listed.out)["runs"]] == ["train"]


def test_training_that_raises_the_nll_keeps_the_run_and_ends_with_4(studio: Path, call: Call) -> None:
    done = call(*flags(studio, "--epochs", 2, "--lr", 100))
    assert done.code == 4, done.err
    assert "training did not lower the tracks' mean NLL: " in done.err
    assert "a lower --lr" in done.err
    assert Path("base/run.json").exists()
    assert call(*flags(studio, "--epochs", 2, "--lr", 100, "--resume")).code == 4


def test_a_model_that_is_not_finite_is_never_a_complete_run(studio: Path, call: Call) -> None:
    done = call(*flags(studio, "--epochs", 3, "--lr", 1e6))
    assert (done.code, "not finite" in done.err or "non-finite" in done.err) == (1, True), done.err
    assert "lower --lr" in done.err
    assert "not expected" not in done.err
    assert not Path("base/run.json").exists()
    assert not Path("base/model").exists()


def test_a_gold_says_what_it_was_not_trained_on(studio: Path, call: Call, tmp_path: Path) -> None:
    Path("without.txt").write_text(f"{studio / 'music/one.wav'}\tlonely flute over lute\n")
    done = call(*flags(studio, "--epochs", 1, "--without", "without.txt", "--root", studio / "music", "--json"))
    assert done.code == 0, done.err
    assert "train on 2 tracks, leave 1 out" in done.err
    record = json.loads(done.out)
    assert record["tracks"] == {"trained": 2, "left_out": 1}
    assert record["run"] == "base"


def test_exit_code_4_where_too_few_tracks_are_memorised(studio: Path, call: Call) -> None:
    done = call(*flags(studio, "--steps", 2))
    assert done.code == 4
    assert "after 2 steps the model has memorised 0 of 3 tracks" in done.err
    assert Path("base/model/model.safetensors").exists()


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--without", "nowhere.txt"], 3, "nowhere.txt"),
        (["-o", "rat=1"], 2, "rat"),
        (["--epochs", "0"], 2, "epochs"),
        (["--epochs", "2", "--steps", "9"], 2, "--epochs and --steps both"),
        (["--precision", "fp23"], 2, "fp23"),
        (["--lora-rank", "4"], 2, "--lora-rank is a setting of an adapter"),
        (["--checkpoint-activations", "maybe"], 2, "maybe"),
        (["--fsdp"], 2, "--fsdp splits the model over processes"),
        (["--backend", "abacus"], 2, "abacus"),
        (["--resume"], 2, "holds no run to resume"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(
    studio: Path, call: Call, more: list[str], code: int, message: str
) -> None:
    done = call(*flags(studio, *more))
    assert done.code == code, done.err
    assert message in done.err
    assert "Traceback" not in done.err
    assert not Path("base").exists()


def launch(words: list[str], before: Callable[[], None] | None = None) -> list[tuple[int, str]]:
    """Run a command in two processes, as `torchrun` starts them; the exit code and the output of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    logs = [Path(f"output.{rank}") for rank in range(2)]
    for log in logs:
        log.write_text("")
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    processes = [
        Forked(words, log, {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}, before)
        for rank, log in enumerate(logs)
    ]
    return [(process.wait(240), log.read_text()) for process, log in zip(processes, logs, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_two_processes_train_the_model_of_one(studio: Path, call: Call, fsdp: bool) -> None:
    rest: list[object] = ["-o", "dropout=false", "--device", "cpu", "--lr", 1e-3, "--batch-size", 4, "--steps", 12]
    rest += ["-o", "eval_every=4", "-o", "decay_steps=4", "-o", "crop_share=0.5"]
    assert call(*flags(studio, *rest)).code == 4
    Path("base").rename("one")
    together = [str(word) for word in [*flags(studio, *rest), *(["--fsdp"] if fsdp else [])]]
    results = launch(together)
    assert [code for code, _ in results] == [4, 4], results
    assert "train on 3 tracks" in results[0][1]
    assert results[1][1] == ""
    one, two = (json.loads(Path(name, "run.json").read_text()) for name in ("one", "base"))
    assert two["hardware"]["processes"] == 2
    assert "processes" not in one["hardware"]
    assert one["outcome"]["steps"] == two["outcome"]["steps"] == 12
    for key in ("nll_before", "nll_after"):
        assert two["outcome"]["trained"][key] == pytest.approx(one["outcome"]["trained"][key], abs=1e-3)
    logged = [Path(name, "log.jsonl").read_text().count('"retain_loss"') for name in ("one", "base")]
    assert logged == [12, 12]
    weights, others = (load_file(Path(name, "model/model.safetensors")) for name in ("one", "base"))
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=1e-4)
    again = launch([*together, "--resume"])
    assert [code for code, _ in again] == [4, 4]
    assert json.loads(Path("base/run.json").read_text()) == two
    refused = launch([*together, "--resume", "--seed", "1"])
    assert [code for code, _ in refused] == [2, 2], refused
    assert refused[0][1].count("not the run that was started") == 1


def stop_at_the_fourth() -> None:
    """A signal reaches the second of the processes at its fourth step."""
    backward = Loop._backward

    def stopping(self: Loop, *given: Any) -> Any:
        if given[0].index == 3 and distributed.rank() == 1:
            self.engine.stop.number = 15
        return backward(self, *given)

    Loop._backward = stopping  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_another_number_of_processes(studio: Path, call: Call) -> None:
    pytest.importorskip("peft")
    rest = ["-o", "dropout=false", "--device", "cpu", "--epochs", 6, "--batch-size", 2, "--adapter", "lora"]
    command = [str(word) for word in flags(studio, *rest)]
    assert call(*command).code == 0
    Path("base").rename("one")
    stopped = launch(command, stop_at_the_fourth)
    assert [code for code, _ in stopped] == [143, 143]
    assert "stopped by SIGTERM; continue with the same command and --resume" in stopped[0][1]
    assert not Path("base/run.json").exists()
    again = call(*command, "--resume")
    assert again.code == 0, again.err
    assert '"event": "resumed"' in Path("base/log.jsonl").read_text()
    weights, others = (load_file(Path(name, "model/model.safetensors")) for name in ("one", "base"))
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=1e-4)
