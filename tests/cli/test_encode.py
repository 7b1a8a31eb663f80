"""`encore encode` and the commands that take its folder, as they are typed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Done

Call = Callable[..., Done]


@pytest.fixture
def music(studio: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(studio / "music", tmp_path / "music"))


def test_forget_eval_and_attribute_need_no_audio_beside_shards(studio: Path, music: Path, call: Call) -> None:
    model = studio / "model"
    done = call("encode", "--catalog", music / "catalog.jsonl", "--model", model, "--out", "tokens", "--workers", 1)
    assert done.code == 0, done.err
    assert "8 tracks in 1 shards" in done.err
    assert not done.out
    clip = shutil.copy(music / "one.wav", "clip.wav")
    shutil.rmtree(music)
    Path("list.txt").write_text("id:one\ntwo.wav\n")
    flags = ("--tracks", "list.txt", "--catalog", "tokens", "--model", model)
    done = call("forget", *flags, "--method", "graddiff", "--steps", 2, "--out", "run")
    assert done.code in (0, 4), done.err
    assert "6 clips in" in done.err
    request = json.loads(Path("run/request.json").read_text())
    assert [entry["id"] for entry in request["forget"]] == ["one", "two"]
    assert request["retain_shards"]["tracks"] == 4
    done = call("eval", "run", "--metrics", "nll", "--json")
    assert done.code == 0, done.err
    shutil.move("run", "moved/run")
    shutil.move("tokens", "moved/tokens")
    assert call("eval", "moved/run", "--metrics", "nll", "--json").code == 0
    done = call("attribute", clip, "--catalog", "moved/tokens", "--model", model, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["compared"] == 6


def test_a_bench_takes_the_shards(studio: Path, music: Path, call: Call) -> None:
    model = studio / "model"
    catalog = music / "catalog.jsonl"
    assert call("encode", "--catalog", catalog, "--model", model, "--out", "tokens", "--workers", 1).code == 0
    shutil.rmtree(music)
    Path("list.txt").write_text("id:one\nid:two\n")
    flags = (
        "--tracks", "list.txt", "--catalog", "tokens", "--model", model, "--methods", "graddiff", "--seeds", 1,
        "-o", "graddiff.steps=2", "--metrics", "nll", "--forget-sizes", "3",
    )  # fmt: skip
    done = call("bench", *flags)
    assert done.code == 0, done.err
    assert call("bench", *flags).code == 0  # nothing left to do, and the tracks are found to be the same


def test_json_and_an_unreadable_catalogue(studio: Path, music: Path, call: Call) -> None:
    flags = ("encode", "--model", studio / "model", "--out", "tokens", "--workers", 1)
    done = call(*flags, "--catalog", music / "nothing.jsonl")
    assert (done.code, done.out) == (3, "")
    done = call(*flags, "--catalog", music / "catalog.jsonl", "--json")
    told = json.loads(done.out)
    assert (told["schema"], told["tracks"], told["skipped"]) == (1, 8, 0)
    (music / "one.wav").write_bytes(b"")
    done = call(*flags[:-4], "--out", "others", "--catalog", music / "catalog.jsonl")
    assert done.code == 3
    assert "one.wav" in done.err
    assert "--skip-unreadable" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_stopped_leaves_no_other_and_is_continued(
    studio: Path, music: Path, tmp_path: Path, number: signal.Signals
) -> None:
    records = [json.loads(line) for line in (music / "catalog.jsonl").read_text().splitlines()]
    with (music / "catalog.jsonl").open("w") as stream:  # 1600 tracks of one sample more each: four shards
        sound = (music / "one.wav").read_bytes()
        for i in range(1600):
            (music / f"{i}.wav").write_bytes(sound + b"junk" + i.to_bytes(4, "little"))
            stream.write(json.dumps({**records[0], "file_name": f"{i}.wav", "id": f"{i}"}) + "\n")
    command = [
        sys.executable, "-m", "encore", "encode", "--catalog", music / "catalog.jsonl", "--model", studio / "model",
        "--out", tmp_path / "tokens", "--workers", "2",
    ]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)), start_new_session=True, stderr=subprocess.PIPE)
    while not list(tmp_path.glob("tokens/shard-*")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=60) == (-9 if number == signal.SIGKILL else 128 + number)
    time.sleep(1.0)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # its processes have ended too
    done = subprocess.run(list(map(str, [*command, "--json"])), capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["tracks"] == 1600
    assert told["written"] < told["shards"] == 4
