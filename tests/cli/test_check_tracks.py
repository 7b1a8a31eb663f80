"""`encore check`: files, table, JSON, exit codes, and what is said when something can't be checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.conftest import Done

from encore import assets
from encore.files import read_json
from encore.store import schemas

Call = Callable[..., Done]


def test_a_folder_with_held_out_music(studio: Path, call: Call) -> None:
    music = studio / "music"
    for name in ("one.wav", "long.wav"):
        Path("mine").mkdir(exist_ok=True)
        shutil.copy(music / name, "mine")
    words = (
        "check", "--tracks", "mine", "--model", studio / "model", "--catalog", music / "catalog.jsonl", "--samples", 1,
    )  # fmt: skip
    done = call(*words, "--fail-on-found")
    assert done.code == 0, done.err  # random weights: nothing is found
    assert "No sign of 2 tracks was found under these tests" in done.out
    assert "with 2 held-out tracks no p of a single track is below 0.33" in done.err
    result = read_json(Path("check/check.json"), schemas.Check)
    assert result["summary"] == {"memorised": 0, "trained_on": 0, "no_sign": 2, "not_checked": 0}
    assert {track["id"] for track in result["tracks"]} == {"one.wav", "long.wav"}
    assert 0 < result["list"]["p"] <= 1
    page = Path("check/check.html").read_text("utf-8")
    assert "No sign of 2 tracks was found under these tests" in page
    assert "What this does not show" in page
    again = call(*words)
    assert (again.code, "check.json exists already" in again.err) == (2, True)
    printed = json.loads(call(*words, "--overwrite", "--json").out)
    assert printed == json.loads(Path("check/check.json").read_text())


def test_what_can_be_said_without_held_out_music_and_of_files_that_are_not_audio(studio: Path, call: Call) -> None:
    Path("mine").mkdir()
    shutil.copy(studio / "music/one.wav", "mine/A Song.wav")
    Path("mine/noise.wav").write_bytes(b"RIFF nothing of the kind")
    done = call("check", "--tracks", "mine", "--model", studio / "model", "--samples", 1)
    assert done.code == 6, done.err
    assert "1 track could not be checked" in done.err
    assert "noise.wav" in done.err
    assert "not tried: membership of each track (there is no held-out music)" in done.err
    assert "membership was not tested: there is no held-out music" in done.out
    result = read_json(Path("check/check.json"), schemas.Check)
    assert result["summary"]["not_checked"] == 1
    assert result["list"] is None
    page = Path("check/check.html").read_text("utf-8")
    assert "There was no held-out music to compare with" in page
    assert "noise.wav" in page
    (Path("mine/A Song.wav")).unlink()
    done = call("check", "--tracks", "mine", "--model", studio / "model", "--out", "other")
    assert done.code == 3
    assert not any(Path("other").iterdir())
    done = call("check", "--tracks", "", "--model", studio / "model")
    assert (done.code, "--tracks and --holdout need a name" in done.err) == (2, True)


@pytest.mark.parametrize("others", [(), ("check.json",)])
def test_a_folder_of_samples_that_no_check_made_is_kept(studio: Path, call: Call, others: tuple[str, ...]) -> None:
    Path("mine/samples").mkdir(parents=True)
    shutil.copy(studio / "music/one.wav", "mine/samples/song.wav")
    for name in others:
        Path("mine", name).write_text("{}")
    done = call("check", "--tracks", "mine", "--model", studio / "model", "--out", "mine", "--overwrite")
    assert (done.code, "mine/samples would be replaced" in done.err) == (1, True)
    assert Path("mine/samples/song.wav").exists()


def test_a_model_whose_likelihood_is_not_finite_is_refused(studio: Path, call: Call) -> None:
    shutil.copytree(studio / "model", "broken")
    weights = load_file("broken/model.safetensors")
    next(value for name, value in weights.items() if "lm_heads.0" in name)[0, 0] = float("nan")
    save_file(weights, "broken/model.safetensors", {"format": "pt"})
    done = call("check", "--tracks", studio / "music/one.wav", "--model", "broken", "--backend", "musicgen")
    assert (done.code, "broken: the model's likelihood of one.wav is not finite" in done.err) == (3, True)


@pytest.mark.slow
def test_on_the_embedded_model_memorised_tracks_are_found_and_held_out_ones_are_not(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded_cache: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENCORE_CACHE", str(embedded_cache))
    tracks = [json.loads(line) for line in assets.CATALOG.read_text().splitlines()]
    ids = {split: [f"id:{t['id']}" for t in tracks if t["split"] == split][:2] for split in ("forget", "holdout")}
    Path("list.txt").write_text("\n".join(ids["forget"] + ids["holdout"]) + "\n")
    done = call("check", "--tracks", "list.txt", "--fail-on-found")
    assert done.code == 4, done.err
    result = read_json(Path("check/check.json"), schemas.Check)
    assert {t["id"] for t in result["tracks"] if t["verdict"] == "memorised"} == {i[3:] for i in ids["forget"]}
    assert (Path("check") / result["tracks"][0]["sample"]).exists()
    assert result["calibration"]["tracks"] == 8
    done = call("check", "--tracks", "list.txt", "--model", "tiny-gold", "--fail-on-found", "--out", "gold")
    assert done.code == 0, done.err
