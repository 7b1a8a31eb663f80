"""Faults 11 (manifests), 12, 13, 21 and 22 of lists and catalogues: refused with exit 3, or they simply work."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from encore.data.catalog import Catalog
from encore.data.decode import load
from encore.data.duplicates import find_duplicates, refusal, without_duplicates
from encore.data.track_list import read_list
from encore.errors import InputError
from encore.text import csv_cell, printable

SOURCE = Path(__file__).parents[2] / "src"


def audio(path: Path | bytes, seed: int = 0) -> Path:
    """A real half-second WAV at `path`, which may be bytes that are no UTF-8."""
    sound = np.random.default_rng(seed).uniform(-0.3, 0.3, 8_000)
    target = Path(os.fsdecode(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    plain = target.parent / f"plain{seed}.wav"
    soundfile.write(plain, sound, 16_000)
    plain.replace(target)
    return target


def listed(folder: Path, line: str | bytes, name: str = "list.txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = line if isinstance(line, bytes) else line.encode("utf-8", "surrogateescape")
    (folder / name).write_bytes(data + b"\tcaption\n")
    return folder / name


def refused(call: Callable[[], object], *says: str) -> InputError:
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.exit_code == 3
    for part in says:
        assert part in caught.value.message
    return caught.value


# ------------------------------------------------------------------------------------------------------------- 11


@pytest.mark.parametrize("row", [b"\0", b'{"path": "x"}\n', b"\n", b" "], ids=["zeros", "rows", "blank", "one line"])
def test_11_a_gzip_bomb_as_manifest_stays_small_in_memory(tmp_path: Path, row: bytes) -> None:
    bomb = tmp_path / "data.jsonl.gz"
    piece = gzip.compress(row * ((8 << 20) // len(row)))
    bomb.write_bytes(piece * 64)  # gzip streams may follow one another: half a gibibyte
    code = f"""if True:
        import resource, sys
        from encore.data import catalog
        from encore.data import open_files
        from encore.errors import InputError
        catalog.CATALOG_CAPS = open_files.Caps(total=1 << 20, lines=10_000, line=256 << 10)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            catalog.Catalog.open({str(bomb)!r})
        except InputError as error:
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(error.exit_code, grown >> 10, error)
    """
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    exit_code, grown, message = done.stdout.split(" ", 2)
    assert exit_code == "3"
    assert int(grown) < 64
    assert "data.jsonl.gz" in message


def test_11_the_real_caps_refuse_a_line_of_a_hundred_megabytes(tmp_path: Path) -> None:
    bomb = tmp_path / "data.jsonl.gz"
    bomb.write_bytes(gzip.compress(b'{"path": "' + b"a" * (100 << 20)))
    refused(lambda: Catalog.open(bomb), "data.jsonl.gz, line 1", "longer than")
    refused(lambda: read_list(listed(tmp_path, b"a" * 70_000)), "list.txt, line 1", "longer than")
    refused(lambda: read_list(listed(tmp_path, b"#\n" * 100_001)), "more than 100,000 lines")


# ------------------------------------------------------------------------------------------------------------- 12


NAMES = [
    b"caf\xe9.wav",
    "🎹 nocturne.wav".encode(),
    b"a\x1b[2Jb.wav",
    b"-rf.wav",
    b"[red]x[/].wav",
    b"<script>.wav",
    b"#1.wav",
]


@pytest.mark.parametrize("name", NAMES)
def test_12_names_of_any_bytes_work_and_print(tmp_path: Path, name: bytes) -> None:
    path = audio(os.fsencode(tmp_path) + b"/" + name)
    (track,) = read_list(listed(tmp_path, b"./" + name)).tracks
    assert track.path == path
    assert load(track.path, sample_rate=16_000).frames_decoded == 8_000
    for text in (track.id, printable(track.path), printable(track.source)):
        text.encode("utf-8")
        assert "\x1b" not in text


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_12_a_newline_in_a_name_works_where_the_format_can_write_it(tmp_path: Path, kind: str) -> None:
    path = audio(os.fsencode(tmp_path) + b"/two\nlines.wav")
    text = {"jsonl": '{"path": "two\\nlines.wav", "text": "x"}\n', "csv": 'path,text\n"two\nlines.wav",x\n'}[kind]
    (tmp_path / f"list.{kind}").write_text(text)
    (track,) = read_list(tmp_path / f"list.{kind}").tracks
    assert track.path == path
    assert track.id == "two\\nlines.wav"


@pytest.mark.parametrize("title", ["[/]", "<script>alert(1)</script>", "\x1b]0;owned\x07", "a\ud800b", "x\u202ey"])
def test_12_hostile_titles_pass_through_and_print_escaped(tmp_path: Path, title: str) -> None:
    audio(tmp_path / "a.wav")
    (tmp_path / "c.jsonl").write_text(json.dumps({"file_name": "a.wav", "id": title, "title": title, "caption": title}))
    (track,) = Catalog.open(tmp_path / "c.jsonl").tracks()
    assert track.title == title
    for text in (track.id, printable(track.title), track.caption):
        text.encode("utf-8")
        assert "\x1b" not in text


def test_12_messages_never_carry_control_characters(tmp_path: Path) -> None:
    error = refused(
        lambda: read_list(listed(tmp_path, b"no\x1b[31m\xff.wav")), "list.txt, line 1", "no\\x1b[31m\\xff.wav"
    )
    error.message.encode("utf-8")


# ------------------------------------------------------------------------------------------------------------- 13


OUTSIDE = [
    "../secret.wav",
    "sub/../../secret.wav",
    "{root}/secret.wav",
    "link.wav",
    "linked/secret.wav",
    "file://{root}/secret.wav",
]


def outside(tmp_path: Path) -> Path:
    """A list's folder from which five ways lead to a file beside it."""
    audio(tmp_path / "secret.wav")
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "link.wav").symlink_to(tmp_path / "secret.wav")
    (folder / "linked").symlink_to(tmp_path)
    return folder


@pytest.mark.parametrize("line", OUTSIDE)
def test_13_a_path_that_leads_outside_is_refused(tmp_path: Path, line: str) -> None:
    folder = outside(tmp_path)
    path = listed(folder, line.format(root=tmp_path))
    error = refused(lambda: read_list(path), "list.txt, line 1", "leads outside")
    refused(lambda: read_list(path, allow_missing=True), "leads outside")
    assert "--root" in error.hint
    assert len(read_list(path, roots=[tmp_path]).tracks) == 1


@pytest.mark.parametrize("line", OUTSIDE[:5])
def test_13_a_catalogue_leads_nowhere_outside_either(tmp_path: Path, line: str) -> None:
    folder = outside(tmp_path)
    row = {"path": line.format(root=tmp_path), "id": "x", "caption": "c"}
    (folder / "c.jsonl").write_text(json.dumps(row) + "\n")
    catalog = Catalog.open(folder / "c.jsonl")
    refused(catalog.tracks, "c.jsonl, line 1", "leads outside")
    refused(lambda: read_list(listed(folder, "id:x"), catalog=catalog), "c.jsonl, line 1", "leads outside")


def test_13_what_is_outside_is_not_told_from_what_is_not_there(tmp_path: Path) -> None:
    folder = outside(tmp_path)
    there = refused(lambda: read_list(listed(folder, "../secret.wav"))).message
    gone = refused(lambda: read_list(listed(folder, "../absent.wav"))).message
    assert there.replace("secret", "absent") == gone


def test_13_a_sidecar_that_leads_out_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "password.txt").write_text("hunter2")
    audio(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "a.txt").symlink_to(tmp_path / "password.txt")
    (tmp_path / "in" / "list.txt").write_text("a.wav\n")
    error = refused(lambda: read_list(tmp_path / "in" / "list.txt"), "a.txt", "leads outside")
    assert "hunter2" not in str(error)


def special(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            os.chdir(path.parent)
            server.bind(path.name)


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket"])
def test_13_only_regular_files_and_no_waiting(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    special(tmp_path / "a.wav", kind)
    begun = time.monotonic()
    refused(lambda: read_list(listed(tmp_path, "a.wav")), "list.txt, line 1", kind)
    refused(lambda: read_list(listed(tmp_path, "a.wav"), allow_missing=True), kind)
    refused(lambda: load(tmp_path / "a.wav", sample_rate=16_000), kind)
    refused(lambda: read_list(tmp_path / "a.wav"), kind)
    assert time.monotonic() - begun < 2


def test_13_devices_are_refused(tmp_path: Path) -> None:
    refused(lambda: load("/dev/zero", sample_rate=16_000), "is a device")
    refused(lambda: read_list(listed(tmp_path, "/dev/zero"), roots=[Path("/")]), "line 1", "is a device")
    refused(lambda: Catalog.open("/dev/zero"), "/dev/zero")
    refused(lambda: read_list("/dev/null"), "is a device")


def test_13_links_that_go_in_circles_are_not_found(tmp_path: Path) -> None:
    (tmp_path / "a.wav").symlink_to(tmp_path / "b.wav")
    (tmp_path / "b.wav").symlink_to(tmp_path / "a.wav")
    refused(lambda: read_list(listed(tmp_path, "a.wav")), "list.txt, line 1", "no file 'a.wav'")


def test_13_a_pipe_as_standard_input_is_read(tmp_path: Path) -> None:
    audio(tmp_path / "a.wav")
    code = "from encore.data.track_list import read_list; print(read_list('-').tracks[0].id)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=b"# from a pipe\na.wav\tx\n",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.strip() == b"a.wav"
    assert done.returncode != -signal.SIGPIPE


# --------------------------------------------------------------------------------------------------------- 21, 22


def test_21_the_same_track_on_both_sides_is_refused_or_dropped(tmp_path: Path) -> None:
    audio(tmp_path / "forget" / "a.wav", 1)
    sound, rate = soundfile.read(tmp_path / "forget" / "a.wav", dtype="int16")
    (tmp_path / "keep").mkdir()
    soundfile.write(tmp_path / "keep" / "renamed.flac", sound, rate)
    audio(tmp_path / "keep" / "other.wav", 2)
    forget = read_list(listed(tmp_path / "forget", "a.wav")).tracks
    (tmp_path / "keep" / "list.txt").write_text("renamed.flac\tx\nother.wav\ty\n")
    retain = read_list(tmp_path / "keep" / "list.txt").tracks
    pairs = find_duplicates(forget, retain)
    error = refusal(pairs)
    assert error.exit_code == 3
    assert "a.wav = renamed.flac (same samples)" in error.message
    assert "--drop-duplicates" in error.hint
    assert [track.id for track in without_duplicates(retain, pairs)] == ["other.wav"]


def test_22_a_formula_in_a_cell_is_read_as_text_and_written_as_text(tmp_path: Path) -> None:
    audio(tmp_path / "a.wav")
    (tmp_path / "list.csv").write_text('path,title,caption\na.wav,=cmd(),"=HYPERLINK(""http://x"")"\n')
    (track,) = read_list(tmp_path / "list.csv").tracks
    assert track.title == "=cmd()"
    assert csv_cell(track.title) == "'=cmd()"
    assert csv_cell(track.caption).startswith("'=HYPERLINK")
