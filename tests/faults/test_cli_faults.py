"""Hostile input through the command line (rows 8-15 and 24): one sentence, exit 3, nothing written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tests.conftest import Done

Call = Callable[..., Done]


def forget(studio: Path, call: Call, *more: object) -> Done:
    music = studio / "music"
    return call(
        "forget", "--retain", music / "retain.txt", "--holdout", music / "holdout.txt", "--model", studio / "model",
        "--method", "graddiff", "--steps", "1", "--out", "run", *more,
    )  # fmt: skip


def refused(done: Done, words: str) -> None:
    """Exit 3 and one sentence, without a traceback or a raw control character; no run folder."""
    assert (done.code, words in done.err) == (3, True), done.err
    assert done.err.count("error:") == 1
    assert "Traceback" not in done.err
    assert all(char.isprintable() or char == "\n" for char in done.out + done.err)
    assert not Path("run").exists()


def sound(path: Path | str, **changed: float) -> None:
    noise = np.random.default_rng(1).standard_normal(4000).astype(np.float32) * 0.1
    noise[7] = changed.get("sample", noise[7])
    with open(path, "wb") as file:
        soundfile.write(file, noise, 8000, subtype="FLOAT", format="WAV")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty.wav", "empty.wav is empty"),
        ("text.wav", "not in an audio format"),
        ("zip.mp3", "not in an audio format"),
        ("cut.wav", "is incomplete"),
        ("nan.wav", "NaN"),
        ("loud.wav", "peak"),
        ("pipe.wav", "is a pipe"),
        ("folder.wav", "is a folder"),
        ("../out.wav", "leads outside"),
        ("link.wav", "leads outside"),
        ("gone.wav", "no file"),
    ],
)
def test_a_bad_file_on_the_list(studio: Path, tmp_path: Path, call: Call, name: str, words: str) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    sound(tmp_path / "out.wav")
    (lists / "empty.wav").touch()
    (lists / "text.wav").write_text("la la la " * 99)
    (lists / "zip.mp3").write_bytes(b"PK\x03\x04" + bytes(999))
    sound(lists / "cut.wav")
    os.truncate(lists / "cut.wav", 9000)
    sound(lists / "nan.wav", sample=np.nan)
    sound(lists / "loud.wav", sample=1e5)
    os.mkfifo(lists / "pipe.wav")
    (lists / "folder.wav").mkdir()
    (lists / "link.wav").symlink_to(tmp_path / "out.wav")
    (lists / "list.txt").write_text(f"{name}\ta song\n")
    refused(forget(studio, call, "--tracks", lists / "list.txt"), words)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_hostile_names_and_captions_work_and_are_escaped(studio: Path, call: Call) -> None:
    names = [b"not-utf8-\xff.wav", "🎵 [bold]song.wav".encode(), b"esc\x1b[2J.wav", b"<script>.wav"]
    listed = b""
    for i, name in enumerate(names):
        sound(os.fsdecode(name), sample=0.01 * i)
        listed += name + b"\t[/] <script>alert(1)</script> \x1b[31m\n"
    Path("list.txt").write_bytes(listed)
    done = forget(studio, call, "--tracks", "list.txt", "--drop-duplicates")
    assert done.code == 0, done.err
    assert "not-utf8-\\" in done.out
    assert "🎵 [bold]song.wav" in done.out
    assert all(char.isprintable() or char in "\n\u200d" for char in done.out + done.err)
    request = json.loads(Path("run/request.json").read_text())
    assert [track["line"] for track in request["forget"]] == [1, 2, 3, 4]
    shown = call("eval", "run", "--metrics", "nll", "--json")
    assert shown.code == 0, shown.err
    assert len(json.loads(shown.out)["results"][0]["per_track"]) == 4
    table = call("eval", "run", "--metrics", "nll")
    assert table.code == 0, table.err
    assert all(char.isprintable() or char in "\n\u200d" for char in table.out + table.err)


def test_ids_of_a_catalogue_can_not_write_outside_the_run(studio: Path, tmp_path: Path, call: Call) -> None:
    Path("work").mkdir()
    sound("work/a.wav")
    record = {"file_name": "a.wav", "id": "../../../../evil", "caption": "x", "split": "train"}
    Path("work/catalog.jsonl").write_text(json.dumps(record))
    Path("work/list.txt").write_text("id:../../../../evil\n")
    done = forget(studio, call, "--tracks", "work/list.txt", "--catalog", "work/catalog.jsonl", "--out", "work/run")
    assert done.code == 0, done.err
    assert call("eval", "work/run", "--metrics", "nll").code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"work"}
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"a.wav", "catalog.jsonl", "list.txt", "run"}


def test_lists_and_catalogues_that_are_none(studio: Path, call: Call) -> None:
    Path("zeros.txt").write_bytes(bytes(999))
    refused(forget(studio, call, "--tracks", "zeros.txt"), "not text")
    Path("blank.txt").write_text("# nothing\n\n")
    refused(forget(studio, call, "--tracks", "blank.txt"), "names no track")
    os.mkfifo("pipe.txt")
    refused(forget(studio, call, "--tracks", "pipe.txt"), "is a pipe")
    refused(forget(studio, call, "--tracks", "/dev/zero"), "is a device")
    Path("id.txt").write_text("id:one\n")
    refused(forget(studio, call, "--tracks", "id.txt"), "needs a catalogue")
    Path("c.jsonl").write_text("{not json\n")
    refused(forget(studio, call, "--tracks", "id.txt", "--catalog", "c.jsonl"), "c.jsonl, line 1: not JSON")


def spoilt(studio: Path, name: str) -> Path:
    """A copy of the model whose weights are of a bad kind."""
    folder = Path("model-" + name)
    shutil.copytree(studio / "model", folder)
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    match name:
        case "cut":
            weights.write_bytes(data[: len(data) // 2])
        case "huge-header":
            weights.write_bytes(struct.pack("<Q", 1 << 60) + data[8:])
        case "lying-offsets":
            header = json.loads(data[8 : 8 + size])
            first = next(key for key in header if key != "__metadata__")
            header[first]["data_offsets"] = [0, 1 << 40]
            text = json.dumps(header).encode()
            weights.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
        case "pickle":
            weights.unlink()
            (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
        case "no-config":
            (folder / "config.json").write_text("{")
    return folder


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (open, ("evil", "w"))


@pytest.mark.parametrize("name", ["cut", "huge-header", "lying-offsets", "pickle", "no-config"])
def test_a_bad_model_folder(studio: Path, call: Call, name: str) -> None:
    folder = spoilt(studio, name)
    done = forget(studio, call, "--tracks", studio / "music/forget.txt", "--model", folder)
    refused(done, f"can't load {Path.cwd() / folder}")
    assert not Path("evil").exists()


def test_weights_that_are_missing(studio: Path, call: Call) -> None:
    from safetensors.torch import load_file, save_file

    folder = spoilt(studio, "fine")
    weights = load_file(folder / "model.safetensors")
    weights.pop("decoder.lm_heads.0.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    done = forget(studio, call, "--tracks", studio / "music/forget.txt", "--model", folder)
    refused(done, "decoder.lm_heads.0.weight")


def test_offline_and_without_a_network_are_told_quickly(
    studio: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unplugged(*_: object, **__: object) -> None:
        raise socket.gaierror("no name service")

    monkeypatch.setattr(socket, "getaddrinfo", unplugged)
    monkeypatch.setattr(socket, "create_connection", unplugged)
    for more in ([], ["--offline"]):
        started = time.monotonic()
        done = forget(studio, call, "--tracks", studio / "music/forget.txt", "--model", "nobody/no-model", *more)
        refused(done, "can't load nobody/no-model")
        assert time.monotonic() - started < 8
        assert "Retrying" not in done.err


@pytest.mark.parametrize(
    ("status", "words"), [(404, "the hub has no model"), (401, "status 401"), (403, "hf auth login")]
)
def test_a_missing_or_gated_model(
    studio: Path, call: Call, monkeypatch: pytest.MonkeyPatch, status: int, words: str
) -> None:
    class Hub:
        status_code = status

        def head(self, *_: object, **__: object) -> Hub:
            return self

    monkeypatch.setattr("huggingface_hub.utils.get_session", Hub)
    refused(forget(studio, call, "--tracks", studio / "music/forget.txt", "--model", "owner/gated"), words)
