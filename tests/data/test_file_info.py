"""What is known of files between runs, and everything that could make it wrong."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from encore.data import file_info
from encore.data.decode import load
from encore.data.file_info import Decoding, FileCache
from encore.errors import InputError

Write = Callable[..., Path]


def never(*_: object, **__: object) -> None:
    raise AssertionError("the file was read again")


def aged(path: Path, seconds: float = 0.0) -> Path:
    """The same file, last modified (as far as this can be said of it) `seconds` ago; its change time stays young."""
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))
    return path


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files written just now count as left alone."""
    monkeypatch.setattr(file_info, "SETTLED", -1.0)


@pytest.mark.usefixtures("settled")
def test_a_file_is_hashed_once_while_it_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc" * 1_000)
    digest = hashlib.sha256(b"abc" * 1_000).hexdigest()
    assert FileCache(tmp_path / "cache").sha256(file) == digest
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", never)
        assert FileCache(tmp_path / "cache").sha256(file) == digest
    for change in (b"abd" * 1_000, b"abd", b""):
        file.write_bytes(change)
        assert FileCache(tmp_path / "cache").sha256(file) == hashlib.sha256(change).hexdigest()


@pytest.mark.usefixtures("settled")
def test_a_modification_time_that_is_set_back_hides_nothing(tmp_path: Path) -> None:
    file, cache = tmp_path / "a", FileCache(tmp_path / "cache")
    file.write_bytes(b"one")
    before = file.stat()
    cache.sha256(file)
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_mtime_ns, file.stat().st_size) == (before.st_mtime_ns, before.st_size)
    assert cache.sha256(file) == hashlib.sha256(b"two").hexdigest()


def test_a_file_written_just_now_is_hashed_each_time(tmp_path: Path) -> None:
    file, cache = tmp_path / "a", FileCache(tmp_path / "cache")
    file.write_bytes(b"one")
    cache.sha256(aged(file, 3_600))  # set back by hand: the change time is young all the same
    assert not cache.path.exists()


def test_facts_are_those_of_the_decoder_and_go_with_the_content(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cache = write("a.flac", 1, 1.0, 22_050), FileCache(tmp_path / "cache")
    digest = cache.sha256(file)
    assert cache.decoding(digest) is None
    audio = cache.load(file, digest, sample_rate=8_000)
    facts = cache.decoding(digest)
    assert facts == Decoding(load(file, sample_rate=22_050).sha256_pcm, 22_050, 1, 22_050, "flac", 22_050)
    assert (facts.seconds, audio.sample_rate) == (1.0, 8_000)
    monkeypatch.setattr(file_info, "decoder_sha256", lambda: "another version")
    assert cache.decoding(digest) is None


def test_what_is_refused_is_not_remembered_as_good(tmp_path: Path, write: Write) -> None:
    file, cache = write("a.flac", 1, 1.0), FileCache(tmp_path / "cache")
    file.write_bytes(file.read_bytes()[:9_000])
    for _ in range(2):
        with pytest.raises(InputError, match=r"damaged|not whole"):
            cache.load(file, cache.sha256(file), sample_rate=8_000)
    assert cache.decoding(cache.sha256(file)) is None


def test_a_file_changed_between_listing_and_decoding_is_refused_and_poisons_nothing(
    tmp_path: Path, write: Write
) -> None:
    file, cache = write("a.wav", 1), FileCache(tmp_path / "cache")
    listed = cache.sha256(file)
    file.write_bytes(write("b.wav", 2).read_bytes())
    with pytest.raises(InputError, match="was changed after it was listed"):
        cache.load(file, listed, sample_rate=8_000)
    assert cache.decoding(listed) is None


@pytest.mark.parametrize("damage", ["flipped", "cut", "text", "empty", "other table", "folder"])
def test_a_damaged_cache_is_made_again_and_never_believed(
    tmp_path: Path, write: Write, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_info, "SETTLED", -1.0)
    file, cache = write("a.wav", 1), FileCache(tmp_path / "cache")
    digest = cache.sha256(file)
    cache.load(file, digest, sample_rate=8_000)
    data = cache.path.read_bytes()
    if damage == "flipped":  # a digit of each record, where SQLite can't see it
        with sqlite3.connect(cache.path) as records:
            records.execute("UPDATE records SET value = replace(replace(value, '1', '2'), 'a', 'b')")
        records.close()
    elif damage == "other table":
        cache.path.unlink()
        with sqlite3.connect(cache.path) as records:
            records.execute("CREATE TABLE records (a)")
        records.close()
    elif damage == "folder":
        cache.path.unlink()
        cache.path.mkdir()
    else:
        cache.path.write_bytes({"cut": data[:5_000], "text": b"not a database" * 500, "empty": b""}[damage])
    assert cache.decoding(digest) is None
    assert cache.sha256(file) == digest
    facts = Decoding.of(cache.load(file, digest, sample_rate=8_000))
    assert cache.decoding(digest) == (None if damage in {"other table", "folder"} else facts)


def test_a_folder_that_cannot_be_written_costs_time_alone(tmp_path: Path, write: Write) -> None:
    (tmp_path / "file").write_text("")
    file, cache = write("a.wav", 1), FileCache(tmp_path / "file" / "cache")
    assert cache.load(file, cache.sha256(file), sample_rate=8_000).frames_decoded == 8_000
    assert cache.decoding(cache.sha256(file)) is None


@pytest.mark.usefixtures("settled")
def test_processes_share_it_and_a_killed_one_leaves_it_whole(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.bin" for i in range(60)]
    for i, file in enumerate(files):
        file.write_bytes(bytes([i]) * 100)
    code = f"""
from pathlib import Path
from encore.data import file_info
file_info.SETTLED = -1.0
cache = file_info.FileCache({str(tmp_path / "cache")!r})
while True:
    for i in range(60):
        cache._put("x", {{"sha256": str(i)}})
        cache.sha256(Path({str(tmp_path)!r}, f"{{i}}.bin"))
"""
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    cache = FileCache(tmp_path / "cache")
    try:
        while not cache.path.exists() and all(writer.poll() is None for writer in writers):
            pass
        for _ in range(3):
            for file in files:
                assert cache.sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest()
        assert all(writer.poll() is None for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert {cache.sha256(file) for file in files} == {hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    with sqlite3.connect(cache.path) as records:
        assert records.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    records.close()


def test_a_damaged_cache_that_cannot_be_removed_costs_time_alone(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = write("a.wav"), FileCache(tmp_path / "cache")
    cache.path.parent.mkdir()
    cache.path.write_bytes(b"no database" * 1_000)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "unlink", refuse)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert cache.sha256(path) == digest
    assert cache.load(path, digest, sample_rate=16_000).frames_decoded == 8_000
    assert cache.decoding(digest) is None
