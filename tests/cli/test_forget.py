"""`encore forget`: what it takes, what it prints where, what it leaves behind."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.conftest import Done

Call = Callable[..., Done]


def arguments(studio: Path, **flags: object) -> list[object]:
    """The flags of a short run; `name=None` takes one out, `name=True` is a switch."""
    music = studio / "music"
    given: dict[str, object] = {
        "tracks": music / "forget.txt", "retain": music / "retain.txt", "holdout": music / "holdout.txt",
        "model": studio / "model", "method": "graddiff", "steps": 3, "out": "run",
    } | flags  # fmt: skip
    listed: list[object] = []
    for name, value in given.items():
        if value is not None:
            listed += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    return ["forget", *listed]


def read(path: Path | str) -> Any:
    return json.loads(Path(path).read_text())


def test_a_run_folder_holds_what_the_design_says(studio: Path, call: Call) -> None:
    done = call(*arguments(studio))
    assert done.code == 0, done.err
    present = {path.name for path in Path("run").iterdir()}
    assert present - {".lock"} == {"request.json", "run.json", "log.jsonl", "model"}
    request, run = read("run/request.json"), read("run/run.json")
    assert [(track["line"], track["id"]) for track in request["forget"]] == [
        (1, "one.wav"), (2, "two.wav"), (3, "long.wav"),
    ]  # fmt: skip
    assert all(len(track[key]) == 64 for track in request["forget"] for key in ("sha256", "pcm_sha256"))
    assert run["outcome"]["steps"] == 3
    assert set(run["outcome"]["after"]["forget"]) == {"one.wav", "two.wav", "long.wav"}
    assert run["options"]["steps"] == {"value": 3, "from": "cli"}
    assert run["options"]["lr"]["from"] == "default"
    assert run["flags"]["holdout"]["from"] == "cli"
    assert run["flags"]["device"] == {"value": "auto", "from": "default"}
    assert {"encore", "torch", "python"} <= set(run["versions"])
    assert run["plugins"][0]["sha256"]
    lines = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "grad_norm" in line] == [1, 2, 3]
    assert Path("run/model/README.md").read_text().startswith("---")
    assert "one.wav" in done.out
    assert request["forget"][0]["sha256"][:16] in done.out
    assert "next: encore eval run" in done.err
    assert "3 tracks of 3 retain tracks" in done.err  # E7: the set of the figure is named


def test_the_model_is_loadable_by_transformers_and_differs_in_the_decoder_alone(studio: Path, call: Call) -> None:
    assert call(*arguments(studio)).code == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (studio / "model", Path("run/model")))
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert all(name.startswith(("decoder.", "enc_to_dec_proj.")) for name in changed)


def test_json_is_one_document_and_everything_else_is_on_stderr(studio: Path, call: Call) -> None:
    done = call(*arguments(studio, json=True))
    assert done.code == 0
    told = json.loads(done.out)
    assert told["run"] == "run"
    assert told["outcome"]["steps"] == 3
    assert [track["line"] for track in told["forget"]] == [1, 2, 3]
    assert "encode tracks: 8/8" in done.err


def test_dry_run_writes_nothing_and_says_what_would_happen(studio: Path, call: Call) -> None:
    done = call(*arguments(studio, dry_run=True, json=True))
    plan = json.loads(done.out)
    assert done.code == 0
    assert not list(Path.cwd().iterdir())
    assert plan["dry_run"]
    assert plan["tracks"] == {"forget": 3, "retain": 3, "holdout": 2}
    assert plan["expected_seconds"] > 0
    assert plan["expected_disk_bytes"] > (studio / "model" / "model.safetensors").stat().st_size
    table = call(*arguments(studio, dry_run=True))
    assert re.search(r"expected +about [\d.]+ (s|min), [\d.]+ [MG]iB of memory, \d+ MiB of disk", table.out)
    assert "nothing was written outside the cache" in table.err  # in which a method's Fisher may be, beside the tracks
    assert not list(Path.cwd().iterdir())


def test_without_out_a_fresh_folder_is_made_every_time(studio: Path, call: Call) -> None:
    for _ in range(2):
        assert call(*arguments(studio, out=None, steps=1)).code == 0
    made = list(Path("runs").iterdir())
    assert len(made) == 2
    assert all("graddiff" in path.name for path in made)


def test_a_list_of_one_track_from_stdin_relative_to_the_working_folder(
    studio: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(studio / "music" / "one.wav", "mine.wav")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("mine.wav\tcafé song\n".encode())))
    done = call(*arguments(studio, tracks="-"))
    assert done.code == 0, done.err
    assert [(track["id"], track["caption"]) for track in read("run/request.json")["forget"]] == [
        ("mine.wav", "café song")
    ]
    both = call(*arguments(studio, tracks="-", retain="-", out="other"))
    assert both.code == 2
    assert "only one list" in both.err


def test_catalogue_gives_ids_captions_retain_and_holdout(studio: Path, call: Call) -> None:
    Path("ids.txt").write_text("# theirs\nid:one\nid:long\n")
    done = call(*arguments(studio, tracks="ids.txt", retain=None, holdout=None, catalog=studio / "music/catalog.jsonl"))
    assert done.code == 0, done.err
    request = read("run/request.json")
    assert [track["id"] for track in request["forget"]] == ["one", "long"]
    assert [track["id"] for track in request["retain"]] == ["two", "four", "five", "six"]
    assert [track["id"] for track in request["holdout"]] == ["seven", "eight"]
    assert request["retain_source"] == "the catalogue without the list"


def test_a_catalogue_without_a_holdout_split_runs_all_steps(studio: Path, call: Call) -> None:
    lines = (studio / "music/catalog.jsonl").read_text().splitlines()
    shutil.copytree(studio / "music", "music")
    Path("music/catalog.jsonl").write_text("\n".join(lines[:6]))
    Path("ids.txt").write_text("id:one\n")
    done = call(*arguments(studio, tracks="ids.txt", retain=None, holdout=None, catalog="music/catalog.jsonl"))
    assert done.code == 0, done.err
    assert "no target NLL" in done.err
    assert read("run/run.json")["outcome"]["holdout_nll"] is None


def test_lines_that_match_nothing(studio: Path, call: Call) -> None:
    Path("list.txt").write_text("id:one\nid:onne\n")
    more: dict[str, object] = {"tracks": "list.txt", "catalog": studio / "music/catalog.jsonl", "retain": None}
    refused = call(*arguments(studio, **more))
    assert refused.code == 3
    assert "list.txt, line 2" in refused.err
    assert "did you mean 'one'" in refused.err
    assert [path.name for path in Path.cwd().iterdir()] == ["list.txt"]
    allowed = call(*arguments(studio, **more, allow_missing=True, json=True))
    assert allowed.code == 0
    assert [missing["line"] for missing in json.loads(allowed.out)["missing"]] == [2]


def test_a_track_on_both_sides(studio: Path, call: Call) -> None:
    music = studio / "music"
    Path("keep.txt").write_text(f"{music}/four.wav\ta\n{music}/two.wav\tb\n")
    refused = call(*arguments(studio, retain="keep.txt", root=music))
    assert refused.code == 3
    assert "two.wav = two.wav (same file)" in refused.err
    assert "--drop-duplicates" in refused.err
    dropped = call(*arguments(studio, retain="keep.txt", root=music, drop_duplicates=True))
    assert dropped.code == 0, dropped.err
    assert [track["id"] for track in read("run/request.json")["retain"]] == ["four.wav"]
    assert "left out" in dropped.err
    overlap = call(*arguments(studio, holdout=music / "forget.txt", out="c"))
    assert overlap.code == 3
    assert "in the holdout" in overlap.err


def test_retain_self_plays_and_keeps(studio: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encore.unlearn.self_retain.SECONDS", 0.2)
    done = call(*arguments(studio, retain="self"))
    assert done.code == 0, done.err
    captions = read("run/retain-self/captions.json")
    assert len(captions) > 10
    assert set(load_file("run/retain-self/codes.safetensors")) == set(captions)
    assert read("run/run.json")["outcome"]["before"]["not_memorised"]
    whole = load_file("run/retain-self/codes.safetensors")
    first = next(iter(whole))
    for other in (whole[first] + 9999, whole[first].float(), whole[first][0], whole[first][:1], whole[first][:, :0]):
        save_file({**whole, first: other.contiguous()}, "run/retain-self/codes.safetensors")
        done = call("eval", "run", "--metrics", "nll")
        assert done.code == 3, done.err
        assert f"invalid codes of {first} for musicgen" in done.err


def test_a_method_that_needs_retain_is_refused_without(studio: Path, call: Call) -> None:
    done = call(*arguments(studio, retain=None))
    assert done.code == 2
    assert "--retain self" in done.err
    assert not list(Path.cwd().iterdir())


def test_a_catalogue_of_which_nothing_is_left_to_keep_is_not_asked_for_again(studio: Path, call: Call) -> None:
    music = studio / "music"
    Path("all.txt").write_text("".join(f"id:{name}\n" for name in ("one", "two", "long", "four", "five", "six")))
    catalog = {"catalog": music / "catalog.jsonl", "retain": None}
    for flags in ({"tracks": "all.txt", "holdout": None}, {"tracks": music / "forget.txt", "holdout": "all.txt"}):
        done = call(*arguments(studio, **catalog, **flags, drop_duplicates=True))
        assert done.code == 2
        assert "there are none in the catalogue without the list: all are to be forgotten" in done.err
        assert "--catalog" not in done.err


def test_a_holdout_that_is_dropped_whole_is_said_to_be_so(studio: Path, call: Call) -> None:
    flags = {"holdout": studio / "music/forget.txt", "drop_duplicates": True, "method": None, "dry_run": True}
    done = call(*arguments(studio, **flags))
    assert done.code == 0, done.err
    assert "no track of --holdout is left" in done.err
    assert "no target NLL unless the method computes one" in done.err


def test_the_next_command_can_be_pasted(studio: Path, call: Call) -> None:
    Path("one.txt").write_text(f"{studio}/music/one.wav\tflute\n")
    done = call(*arguments(studio, tracks="one.txt", root=studio / "music", steps=1, out="a run"))
    assert done.code in (0, 4), done.err
    assert "next: encore eval 'a run'\n" in done.err
    assert "forget 1 track; keep 3" in done.err
    assert "\n1 step in" in done.err


def test_a_flag_and_an_option_that_contradict_each_other(studio: Path, call: Call) -> None:
    done = call(*arguments(studio, lr=0.2), "-o", "lr=0.1")
    assert (done.code, "--lr 0.2 and -o lr=0.1 contradict each other" in done.err) == (2, True), done.err
    same = call(*arguments(studio, lr=0.1, dry_run=True), "-o", "lr=1e-1", "-o", "steps=3")
    assert same.code == 0, same.err


def test_settings_file_environment_and_flags(studio: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("c.toml").write_text('steps = 9\nseed = 5\n[options]\nwarmup = 1\nschedule = "cosine"\n')
    monkeypatch.setenv("ENCORE_OPTION_WARMUP", "2")
    done = call(*arguments(studio, steps=None, config="c.toml"), "-o", "steps=2")
    assert done.code == 0, done.err
    run = read("run/run.json")
    assert run["options"]["steps"] == {"value": 2, "from": "cli"}
    assert run["options"]["warmup"] == {"value": 2, "from": "env"}
    assert run["options"]["schedule"] == {"value": "cosine", "from": "config"}
    assert run["flags"]["seed"] == {"value": 5, "from": "config"}


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ({"method": "gradiff"}, 2, "did you mean graddiff"),
        ({"device": "abacus"}, 2, "abacus"),
        ({"device": "meta"}, 2, "holds no data"),
        ({"precision": "fp12"}, 2, "one of auto, fp32, bf16"),
        ({"steps": 0}, 2, "--steps"),
        ({"optim": "adam"}, 2, "'adamw', 'sam', 'sign' or 'repselect'"),
        ({"method": "ft", "optim": "sam"}, 2, "method 'ft' has none"),
        ({"robust_to": "int4", "adapter": "lora"}, 2, "--adapter or --robust-to"),
        ({"backend": "musicgn"}, 2, "did you mean musicgen"),
        ({"resume": True}, 2, "holds no run to resume"),
        ({"resume": True, "out": None}, 2, "--resume needs --out"),
        ({"tracks": "nothing.txt"}, 3, "nothing.txt"),
        ({"model": "tinny"}, 3, "did you mean tiny"),
        ({"model": "music"}, 3, "can't load"),
        ({"model": "music/model.safetensors"}, 3, "is a file, and a model is a folder\nhint: name its folder: music\n"),
        ({"out": "a-file/run"}, 1, "part of the path is a file\nhint: choose another --out"),
        (
            {"out": "a-file", "tracks": "nothing.txt"},
            1,
            "a file of that name is in the way\nhint: choose another --out",
        ),
        ({"out": "full"}, 2, "is not empty"),
        ({"catalog": "nothing.csv"}, 3, "no catalogue"),
        ({"config": "nothing.toml"}, 3, "can't be read"),
        ({"tracks": None}, 2, "--tracks"),
    ],
)
def test_what_can_not_work_is_told_in_a_sentence_and_writes_nothing(
    studio: Path, call: Call, flags: dict[str, object], code: int, words: str
) -> None:
    Path("a-file").write_text("")
    Path("music").mkdir()
    Path("music/model.safetensors").write_text("")
    Path("music/config.json").write_text("{")
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("years")
    before = sorted(Path.cwd().rglob("*"))
    done = call(*arguments(studio, **flags))
    assert (done.code, words in done.err) == (code, True), done.err
    assert "Traceback" not in done.err
    assert done.err.count("error:") == 1
    assert sorted(Path.cwd().rglob("*")) == before


@pytest.mark.parametrize("flags", [{"device": "abacus"}, {"resume": True}, {"precision": "fp12"}, {"backend": "b"}])
def test_what_needs_no_track_is_refused_before_any_is_looked_for(
    studio: Path, call: Call, flags: dict[str, object]
) -> None:
    done = call(*arguments(studio, tracks="nothing.txt", **flags))
    assert (done.code, done.out, "nothing.txt" in done.err) == (2, "", False), done.err


def test_per_track_clip_is_an_option_of_every_loss_method(studio: Path, call: Call) -> None:
    for method, out in (("graddiff", "a"), ("encore", "b")):
        done = call(*arguments(studio, method=method, out=out, per_track_clip=0.5))
        assert done.code == 0, done.err
        assert read(f"{out}/run.json")["options"]["per_track_clip"] == {"value": 0.5, "from": "cli"}
        lines = [json.loads(line) for line in Path(out, "log.jsonl").read_text().splitlines()]
        norms = [line["grad_norm"] for line in lines if "grad_norm" in line]
        assert len(norms) == 3
        assert all(0 < norm <= 2 * 0.5 * 1.0001 for norm in norms)
    done = call(*arguments(studio, out="c", per_track_clip=0))
    assert (done.code, Path("c").exists()) == (2, False), done.err


def test_options_of_any_loss_are_flags(studio: Path, call: Call) -> None:
    flags = {"optim": "sam", "retain_budget": 0.1, "robust_to": "int4"}
    done = call(*arguments(studio, **flags))
    assert done.code == 0, done.err
    run = read("run/run.json")
    assert {name: run["options"][name] for name in flags} == {
        name: {"value": value, "from": "cli"} for name, value in flags.items()
    }
    assert "that of the retain loss after the last dual step" in run["outcome"]["chosen"]["retain_weight"]


def test_from_any_folder_with_relative_paths(studio: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(studio / "music", "there/music")
    Path("here").mkdir()
    monkeypatch.chdir("here")
    flags: dict[str, object] = {name: f"../there/music/{name}.txt" for name in ("retain", "holdout")}
    relative = os.path.relpath(studio / "model")
    assert call(*arguments(studio, **flags, tracks="../there/music/forget.txt", model=relative)).code == 0
    assert Path(read("run/request.json")["model"]["name"]) == (studio / "model").resolve()


def test_a_list_of_which_nothing_was_memorised_is_said_to_be(studio: Path, call: Call) -> None:
    done = call(*arguments(studio, steps=1))
    assert "none of the forget tracks was memorised" in done.err
    levels = read("run/run.json")["outcome"]
    assert f"held-out music's, {levels['holdout_nll']:.2f}, " in done.err
    assert min(levels["before"]["forget"].values()) > levels["holdout_nll"] / 2


def test_a_runs_model_can_forget_more(studio: Path, call: Call) -> None:
    assert call(*arguments(studio, steps=1)).code == 0
    Path("more.txt").write_text("")
    assert call(*arguments(studio, steps=1, model="run", out="second")).code == 0
    assert read("second/request.json")["model"]["name"] == str(Path("run/model").resolve())


def test_a_collapse_exits_4_with_the_run_kept_and_told(
    studio: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encore.unlearn.records.COLLAPSE", -1.0)
    done = call(*arguments(studio, json=True))
    assert done.code == 4
    assert "the run is kept" in done.err
    assert json.loads(done.out)["outcome"]["collapsed"]
    assert read("run/run.json")["outcome"]["collapsed"]
    assert Path("run/model/model.safetensors").exists()


def test_case_D14_missed_targets_exit_4_whatever_a_mean_says_and_the_run_is_kept(studio: Path, call: Call) -> None:
    done = call(*arguments(studio, lr=0.3, steps=2, json=True))
    assert done.code == 4
    run = read("run/run.json")
    told = [one["message"] for one in run["outcome"]["missed"]]
    assert "holdout" in {one["target"] for one in run["outcome"]["missed"]}
    assert all(sentence in done.err for sentence in told)
    assert json.loads(done.out)["outcome"]["missed"] == run["outcome"]["missed"]
    assert Path("run/model/model.safetensors").exists()
    again = call(*arguments(studio, lr=0.3, steps=2, resume=True))
    assert again.code == 4  # a script that resumes until it succeeds must not take it for a success
    assert "nothing to do" in again.err


def test_a_model_that_cannot_generate_is_still_made_to_forget(
    studio: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no prompt")

    monkeypatch.setattr("encore.backends.musicgen.MusicgenBackend.generate", broken)
    done = call(*arguments(studio))
    assert done.code == 0, done.err
    assert "generations were not checked: RuntimeError: no prompt" in done.err
    assert read("run/run.json")["outcome"]["verbatim"] is None
