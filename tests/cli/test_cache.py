"""`encore cache`."""

from __future__ import annotations

import json
import os
import time

import pytest

from encore.store.cache_entries import read_size

DAY = 86_400


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of four kinds, and files of somebody else's in the same folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ENCORE_CACHE", str(folder))
    name = "ab" * 32
    for path, size, days in (
        (f"ab/{name}.safetensors", 1000, 10),
        (f"cd/{'cd' * 32}.safetensors", 2000, 0),
        (f"evaluations/ab/{name}.safetensors", 4000, 5),
        (f"fisher/{name}.safetensors", 8000, 1),
        ("files.sqlite3", 300, 0),
        ("files.sqlite3-wal", 30, 0),
        ("native/encore-0.1-torch-2.13-cp311/_native.so", 500, 20),
        (f"ab/.staging-1-ab-{name}.safetensors", 7, 2),
        (f"ab/.staging-2-ab-{name}.safetensors", 7, 0),  # somebody writes it now
        ("ab/notes.txt", 9, 30),
        ("thesis/fisher.safetensors", 9, 30),
        (f"thesis/{name}", 9, 30),
        ("native/mine.txt", 9, 30),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x" * size)
        os.utime(folder / path, (time.time() - days * DAY,) * 2)
    return folder


KEPT = {"notes.txt", "fisher.safetensors", "mine.txt", f".staging-2-ab-{'ab' * 32}.safetensors"}
OWN = 1000 + 2000 + 4000 + 8000 + 330 + 500 + 7


def told(call, *given):
    done = call("cache", *given, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_case_E12_cache_shows_what_there_is_and_counts_only_what_is_ours(call, cache):
    found = told(call)
    assert found["bytes"] == OWN
    assert {kind: (of["entries"], of["bytes"]) for kind, of in found["kinds"].items()} == {
        "tracks": (3, 3007), "files": (1, 330), "evaluations": (1, 4000), "fisher": (1, 8000), "native": (1, 500)
    }  # fmt: skip
    shown = call("cache")
    assert "evaluations" in shown.out
    assert str(cache) in shown.err


def test_case_E12_clear_removes_a_kind_and_nothing_of_others(call, cache):
    assert told(call, "--clear", "evaluations")["removed"] == {"entries": 1, "bytes": 4000}
    assert not list((cache / "evaluations").rglob("*.safetensors"))
    assert told(call, "--clear", "all", "--older", "9")["removed"] == {"entries": 2, "bytes": 1500}
    assert told(call, "--clear", "all")["bytes"] == 0
    left = {path.name for path in cache.rglob("*") if path.is_file()}
    assert left == KEPT | {"ab" * 32}  # the last in a folder of somebody else's


def test_case_E12_max_size_drops_the_longest_unused_until_it_fits(call, cache):
    found = told(call, "--max-size", "10.5kB")
    assert found["removed"]["entries"] == 3  # native, a track, evaluations
    assert found["bytes"] == 8000 + 2000 + 330 + 7
    assert told(call, "--max-size", "1 GB")["removed"]["entries"] == 0
    assert told(call, "--older", "0.5", "--max-size", "0")["removed"]["entries"] == 2


def test_links_are_neither_followed_nor_removed(call, cache, tmp_path):
    (tmp_path / "far/ab").mkdir(parents=True)
    (tmp_path / f"far/ab/{'ef' * 32}.safetensors").write_bytes(b"x")
    (cache / "ef").symlink_to(tmp_path / "far/ab")
    (cache / f"cd/{'ef' * 32}.safetensors").symlink_to(tmp_path / f"far/ab/{'ef' * 32}.safetensors")
    assert told(call, "--clear", "all")["removed"]["bytes"] == OWN
    assert (tmp_path / f"far/ab/{'ef' * 32}.safetensors").exists()


def test_bad_input(call, cache, monkeypatch, tmp_path):
    for given, code, words in (
        (["--clear", "everything"], 2, "the kinds are: tracks,"),
        (["--max-size", "-1"], 2, "'-1' is not a size"),
        (["--max-size", "5 apples"], 2, "not a size"),
        (["--clear", "all", "--max-size", "1GB"], 2, "exclude each other"),
        (["--older", "-1"], 2, "older"),
    ):
        done = call("cache", *given)
        assert (done.code, words in done.err) == (code, True), done.err
    assert told(call)["bytes"] == OWN
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path / "no"))
    assert told(call)["bytes"] == 0
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path / "file"))
    assert told(call, "--clear", "all")["bytes"] == 0


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 GiB", 3 * 2**29), ("12", 12), ("0kb", 0)])
def test_sizes(text, size):
    assert read_size(text) == size
