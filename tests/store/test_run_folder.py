"""The run folder: whole or old, one writer, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from encore.errors import EncoreError, InputError, UsageError
from encore.store.run_folder import (
    Checkpoints,
    RunFolder,
    locked,
    preflight,
    read_json,
    staged_folder,
    write_bytes,
    write_json,
)  # fmt: skip


def test_a_complete_run_is_never_overwritten(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder:
        folder.write_json("request.json", {})
        folder.write_json("run.json", {})
    with pytest.raises(UsageError, match="already holds a complete run"):
        RunFolder(tmp_path / "run")
    with pytest.raises(UsageError, match="already holds a complete run"):
        RunFolder(tmp_path / "run", resume=True)


def test_a_begun_run_is_resumed_only_on_request(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run to resume"):
        RunFolder(tmp_path / "run", resume=True)
    with RunFolder(tmp_path / "run") as folder:
        folder.write_json("request.json", {})
    with pytest.raises(UsageError, match="did not finish"):
        RunFolder(tmp_path / "run")
    RunFolder(tmp_path / "run", resume=True).close()


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("three years of work")
    with pytest.raises(UsageError, match="not empty"):
        RunFolder(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "three years of work"


def test_a_second_process_is_refused_and_names_the_first(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run"):
        code = f"""
            from pathlib import Path
            from encore.errors import EncoreError
            from encore.store.run_folder import RunFolder
            try:
                RunFolder(Path({str(tmp_path / "run")!r}))
            except EncoreError as error:
                print(error.message)
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert f"in use by process {os.getpid()}" in done.stdout


def test_orphans_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunFolder(run) as folder:
        folder.write_json("request.json", {})
    (run / ".staging-1-model").mkdir()
    (run / ".staging-1-model" / "half").write_text("x")
    (run / ".staging-1-run.json").write_text("{")
    RunFolder(run, resume=True).close()
    assert not list(run.glob(".staging*"))


@pytest.mark.parametrize("nth", range(1, 40))
def test_killed_at_the_nth_system_call_that_writes(tmp_path: Path, nth: int) -> None:
    """kill -9 just before the n-th open-for-writing, write, sync, rename, mkdir or unlink: old or new, never half."""
    code = f"""
        import os, signal, builtins, shutil
        from pathlib import Path
        count = 0
        def guarded(real):
            def call(*a, **k):
                global count
                count += 1
                if count == {nth}:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*a, **k)
            return call
        from encore.store.run_folder import Checkpoints, write_json
        checkpoints = Checkpoints(Path("c"), "x")
        def fill(value):
            def inner(folder):
                (folder / "a").write_text(value * 1000)
                (folder / "b").write_text(value * 1000)
            return inner
        for number in range(3):
            checkpoints.save(number, fill("o"))
        write_json(Path("run.json"), ["old"] * 1000)
        for name in ("fsync", "replace", "mkdir", "unlink", "rmdir"):
            setattr(os, name, guarded(getattr(os, name)))
        builtins.open = guarded(builtins.open)
        write_json(Path("run.json"), ["new"] * 1000)
        checkpoints.save(3, fill("n"))
        print("done")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    assert read_json(tmp_path / "run.json") in (["old"] * 1000, ["new"] * 1000)
    newest = Checkpoints(tmp_path / "c", "x").latest()
    assert newest is not None
    expected = "n" if newest.name.endswith("3") else "o"
    assert (newest / "a").read_text() == (newest / "b").read_text() == expected * 1000
    if nth == 39:
        assert "done" in done.stdout, "not every write point was reached: raise the range"


def test_a_failed_fill_leaves_the_old_folder(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "model") as folder:
        (folder / "w").write_text("old")
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "model") as folder:  # noqa: PT012
        (folder / "w").write_text("new")
        raise ZeroDivisionError
    assert (tmp_path / "model" / "w").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_write_limit_is_one_sentence_and_keeps_the_old_file(tmp_path: Path) -> None:
    code = """
        import resource, signal
        from pathlib import Path
        from encore.errors import EncoreError
        from encore.store.run_folder import write_bytes
        write_bytes(Path("f"), b"old")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_bytes(Path("f"), b"x" * 5000)
        except EncoreError as error:
            print(error.message)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "larger than allowed" in done.stdout
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_preflight_says_how_many_bytes_are_needed(tmp_path: Path) -> None:
    preflight(tmp_path / "not" / "there", 1000)
    with pytest.raises(EncoreError, match=r"needs 1,000,000,000,000,000 bytes"):
        preflight(tmp_path, 10**15)


def test_nan_never_reaches_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_json_of_a_run_that_is_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing"):
        read_json(tmp_path / "run.json")
    write_bytes(tmp_path / "run.json", b"{")
    with pytest.raises(InputError, match="can't be read as JSON"):
        read_json(tmp_path / "run.json")
    assert json.loads("1") == 1


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", "x")
    for number in range(5):
        checkpoints.save(number, lambda folder: (folder / "a").write_text("x") and None)
    assert [path.name for path in sorted((tmp_path / "c").iterdir())] == ["000000003", "000000004"]
    checkpoints.discard()
    assert checkpoints.latest() is None


@pytest.mark.parametrize("name", ["checkpoints", ".staging-1", "log.jsonl"])
def test_a_link_in_a_run_folder_is_removed_and_never_what_it_leads_to(tmp_path: Path, name: str) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.mkdir()
    (victim / "kept").write_text("no line end")
    with RunFolder(run) as folder:
        folder.write_json("request.json", {})
    (run / name).symlink_to(victim / "kept" if name == "log.jsonl" else victim)
    if name == "checkpoints":
        (run / "run.json").write_text("{}")
        with locked(run):
            pass
    else:
        with RunFolder(run, resume=True) as folder:
            folder.log({"step": 1})
    assert not (run / name).is_symlink()
    assert (victim / "kept").read_text() == "no line end"


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_staged_folder_takes_the_place_of_a_file_or_a_link(tmp_path: Path, kind: str) -> None:
    (tmp_path / "victim").mkdir()
    target = tmp_path / "model"
    target.write_text("x") if kind == "file" else target.symlink_to(tmp_path / "victim")
    with staged_folder(target) as folder:
        (folder / "a").write_text("a")
    assert (target / "a").read_text() == "a"
    assert not list((tmp_path / "victim").iterdir())
