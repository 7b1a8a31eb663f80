"""`encore attribute`: the table, the JSON, and what is said when it can't be done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT, Done

Call = Callable[..., Done]


def test_a_table_of_ranks_and_scores(studio: Path, call: Call) -> None:
    music = studio / "music"
    done = call(
        "attribute", music / "one.wav", "--model", studio / "model", "--catalog", music / "catalog.jsonl", "--top", 3
    )
    assert done.code == 0, done.err
    head, *rows = [line.split() for line in done.out.splitlines() if line.strip("─ ")]
    assert head == ["rank", "track", "title", "score"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert rows[0][1] == "one"
    assert "no caption" in done.err
    assert "compared with 6 tracks" in done.err
    assert "compare scores only with one another" in done.err


def test_case_E5_help_and_documentation_say_the_same_of_a_score(call: Call) -> None:
    help_ = " ".join(call("attribute", "--help").out.split())
    page = " ".join((ROOT / "docs/attribution.md").read_text("utf-8").split())
    assert "Only the order of scores means something" in help_
    assert "has .08 in the median, and the highest other track .05" in help_
    assert "had .08 in the median, the highest other .05" in page


def test_json_says_what_was_compared_and_how(studio: Path, call: Call) -> None:
    music = studio / "music"
    done = call(
        "attribute", music / "two.wav", "--model", studio / "model", "--catalog", music / "catalog.jsonl",
        "--caption", "[bold]brass\x1b[2J band", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["clip"] == str(music / "two.wav")
    assert told["caption"] == "[bold]brass [2J band"
    assert (told["caption_source"], told["compared"], len(told["tracks"])) == ("given", 6, 5)
    scores = [track["score"] for track in told["tracks"]]
    assert scores == sorted(scores, reverse=True)
    assert set(told["tracks"][0]) == {"id", "title", "score"}


def test_what_can_not_be_read_is_told_with_its_exit_code(studio: Path, call: Call) -> None:
    Path("noise.wav").write_bytes(b"RIFF nothing of the kind")
    model, catalog = studio / "model", studio / "music/catalog.jsonl"
    for clip, more, code in (
        ("gone.wav", ["--catalog", catalog], 3),
        ("noise.wav", ["--catalog", catalog], 3),
        (studio / "music/one.wav", ["--catalog", "gone.jsonl"], 3),
        (studio / "music/one.wav", [], 2),
        (studio / "music/one.wav", ["--top", 0], 2),
    ):
        done = call("attribute", clip, "--model", model, *more)
        assert done.code == code, done.err
        assert done.out == ""
        assert "error: " in done.err


def test_tracks_that_can_not_be_read_are_left_out_where_that_is_asked_for(studio: Path, call: Call) -> None:
    model, music = studio / "model", studio / "music"
    records = [json.loads(line) for line in (music / "catalog.jsonl").read_text().splitlines()]
    for record in records:
        record["file_name"] = str(music / record["file_name"])
    Path("noise.wav").write_bytes(b"RIFF nothing of the kind")
    unreadable = [{"id": "noise", "file_name": "noise.wav", "caption": "a"}, {"id": "gone", "file_name": "gone.wav"}]
    Path("all.jsonl").write_text("\n".join(map(json.dumps, [*records, *unreadable])))
    command = ["attribute", music / "one.wav", "--model", model, "--catalog", "all.jsonl", "--root", music, "--json"]
    done = call(*command)
    assert done.code == 3
    assert "noise.wav" in done.err or "gone.wav" in done.err
    done = call(*command, "--skip-unreadable")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["compared"], told["tracks"][0]["id"]) == (6, "one")
    assert sorted(name in text for text in told["skipped"] for name in ("noise.wav", "gone.wav")) == [
        False, False, True, True
    ]  # fmt: skip
    Path("none.jsonl").write_text(json.dumps(unreadable[0]))
    done = call("attribute", music / "one.wav", "--model", model, "--catalog", "none.jsonl", "--skip-unreadable")
    assert done.code == 3, done.err
    assert "noise.wav" in done.err
