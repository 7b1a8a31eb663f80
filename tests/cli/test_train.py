"""`encore train`: the table, the JSON, exit codes, and what is said when it can't be done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Done

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
