"""`encore generate`: WAVs of what a model plays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tests.conftest import Done

Call = Callable[..., Done]


def test_captions_from_the_command_line_and_from_a_file(studio: Path, call: Call) -> None:
    Path("c.txt").write_text("\ufeff# mine\nslow church organ\r\n\n[bold]flute\x1b[2J\n")
    done = call(
        "generate",
        "brass",
        "--captions",
        "c.txt",
        "--model",
        studio / "model",
        "--seconds",
        0.3,
        "--out",
        "w",
        "--json",
    )
    assert done.code == 0, done.err
    told = json.loads(done.out)["generated"]
    assert [item["caption"] for item in told] == ["brass", "slow church organ", "[bold]flute [2J"]
    for item in told:
        audio, rate = soundfile.read(item["file"])
        assert (rate, len(audio)) == (8000, 2400)
    assert sorted(path.name for path in Path("w").iterdir()) == ["000.wav", "001.wav", "002.wav"]


def test_a_seed_gives_the_same_and_another_another(studio: Path, call: Call) -> None:
    sounds = []
    for seed, out in ((1, "a"), (1, "b"), (2, "c")):
        done = call("generate", "x", "--model", studio / "model", "--seconds", 0.3, "--seed", seed, "--out", out)
        assert done.code == 0, done.err
        sounds.append(soundfile.read(f"{out}/000.wav")[0])
    assert np.array_equal(sounds[0], sounds[1])
    assert not np.array_equal(sounds[0], sounds[2])


def test_a_prompt_is_gone_on_from(studio: Path, call: Call) -> None:
    model = studio / "model"
    more = ["--prompt", studio / "music/one.wav", "--prompt-seconds", 0.2, "--temperature", 0, "--guidance", 1]
    for out, prompt in (("without", more[4:]), ("with", more)):
        assert call("generate", "x", "--model", model, "--seconds", 0.4, "--out", out, *prompt).code == 0
    assert not np.array_equal(*(soundfile.read(f"{out}/000.wav")[0] for out in ("without", "with")))


def test_a_run_folder_stands_for_its_model(studio: Path, call: Call) -> None:
    Path("run").mkdir()
    (Path("run") / "model").symlink_to(studio / "model")
    Path("run/run.json").write_text('{"model": {"backend": "waves"}}')
    done = call("generate", "x", "--model", "run", "--seconds", 0.2)
    assert (done.code, "there is no backend 'waves'" in done.err) == (2, True), done.err
    assert call("generate", "x", "--model", "run", "--backend", "musicgen", "--seconds", 0.2).code == 0
    assert Path("generated/000.wav").exists()
    Path("run/run.json").rename("run/request.json")
    done = call("generate", "x", "--model", "run", "--out", "no")
    assert (done.code, "did not finish" in done.err) == (3, True)


def test_what_was_played_before_is_replaced_only_on_request(studio: Path, call: Call) -> None:
    play = ("generate", "x", "y", "--model", studio / "model", "--seconds", 0.2, "--out", "w")
    Path("w").mkdir()
    Path("w/001.wav").write_text("years of work")
    done = call(*play)
    assert (done.code, "w/001.wav exists already" in done.err) == (2, True), done.err
    assert [path.name for path in Path("w").iterdir()] == ["001.wav"]
    assert Path("w/001.wav").read_text() == "years of work"
    assert call(*play, "--overwrite").code == 0
    assert soundfile.info("w/001.wav").frames == 1600


def test_a_checkpoint_of_audiocraft_is_called_so(call: Call, tmp_path: Path) -> None:
    (tmp_path / "compression_state_dict.bin").write_bytes(b"")
    done = call("generate", "x", "--model", tmp_path, "--out", tmp_path / "w")
    assert (done.code, "--backend audiocraft" in done.err) == (3, True), done.err


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ([], 2, "there are no captions"),
        (["", "\n"], 2, "there are no captions"),
        (["x", "--seconds", 0.58, "--prompt", "p.wav"], 2, "leaves none"),
        (["x", "--seconds", 9], 2, "generates at most 0.6 s"),
        (["--captions", "nowhere.txt"], 3, "can't be read"),
        (["--captions", "pipe"], 3, "is a pipe"),
        (["--captions", "zeros"], 3, "not text"),
        (["x", "--seconds", 0.5, "--prompt", "zeros", "--prompt-seconds", 0.1], 3, "not in an audio format"),
        (["x", "--seconds", 0.5, "--out", "zeros"], 1, "in the way"),
        (["x", "--backend", "musicgn"], 2, "did you mean musicgen"),
    ],
)
def test_what_can_not_work(studio: Path, call: Call, given: list[object], code: int, words: str) -> None:
    os.mkfifo("pipe")
    Path("zeros").write_bytes(bytes(99))
    before = sorted(Path.cwd().rglob("*"))
    done = call("generate", "--model", studio / "model", *given)
    assert (done.code, words in done.err) == (code, True), done.err
    assert sorted(Path.cwd().rglob("*")) == before
