"""`encore encode` and the commands that take its folder, as they are typed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.conftest import ROOT, Done
from tests.forked import Forked

from encore import pre_encoding
from encore.compare import scheduler
from encore.data import shard_writing
from encore.data.shards import INDEX

Call = Callable[..., Done]


@pytest.fixture
def music(studio: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(studio / "music", tmp_path / "music"))


def test_forget_eval_and_attribute_need_no_audio_beside_shards(studio: Path, music: Path, call: Call) -> None:
    model = studio / "model"
    done = call("encode", "--catalog", music / "catalog.jsonl", "--model", model, "--out", "tokens", "--workers", 1)
    assert done.code == 0, done.err
    assert "8 tracks in 1 shard," in done.err
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


def test_a_bench_takes_the_shards(studio: Path, music: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "start_process", lambda command, *rest: Forked(command[3:], *rest))
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


def running(group: int) -> bool:
    """Whether a process group has a process."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def indexed(index: Path) -> int:
    """Number of tracks in an index that is being written."""
    try:
        with closing(sqlite3.connect(f"file:{index}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM tracks").fetchone()[0])
    except sqlite3.Error:
        return 0


def small_shards() -> None:
    for module in (pre_encoding, shard_writing):
        module.SHARD_TRACKS = 50


# A process of its own, which imports everything, and forks of one that has.
FRESH = """
from encore.cli import app
from tests.cli.test_encode import small_shards
small_shards()
app.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_stopped_leaves_no_other_and_is_continued(
    studio: Path, music: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    records = [json.loads(line) for line in (music / "catalog.jsonl").read_text().splitlines()]
    with (music / "catalog.jsonl").open("w") as stream:  # 200 tracks of one sample more each: four shards
        sound = (music / "one.wav").read_bytes()
        for i in range(200):
            (music / f"{i}.wav").write_bytes(sound + b"junk" + i.to_bytes(4, "little"))
            stream.write(json.dumps({**records[0], "file_name": f"{i}.wav", "id": f"{i}"}) + "\n")
    command = [
        "encode", "--catalog", music / "catalog.jsonl", "--model", studio / "model", "--out", tmp_path / "tokens",
        "--workers", "2",
    ]  # fmt: skip
    process: Forked | subprocess.Popen[bytes]
    if number == signal.SIGTERM:
        with open(os.devnull, "w") as nowhere:
            process = subprocess.Popen(
                [sys.executable, "-c", FRESH, *map(str, command)], start_new_session=True, stderr=nowhere,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
    else:
        process = Forked(command, tmp_path / "log", before=small_shards)
    while not indexed(tmp_path / "tokens" / INDEX) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=60) == (-9 if number == signal.SIGKILL else 128 + number)
    until = time.monotonic() + 30
    while running(process.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not running(process.pid)  # its processes have ended too
    for module in (pre_encoding, shard_writing):
        monkeypatch.setattr(module, "SHARD_TRACKS", 50)
    done = call(*command, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["tracks"] == 200
    assert told["written"] < told["shards"] == 4
