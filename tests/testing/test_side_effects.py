"""Which side effects are noted: files, processes and connections, and nothing outside the block."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from encore.testing.state import side_effects


def test_changes_are_heard_and_reading_is_not(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    with side_effects() as events:
        (tmp_path / "there").read_text()
        (tmp_path / "new").write_text("x")
        (tmp_path / "folder").mkdir()
        os.rename(tmp_path / "new", tmp_path / "old")
        os.remove(tmp_path / "old")
        with open(os.devnull, "w") as null:
            null.write("x")
    assert events == [
        f"writes {tmp_path}/new", f"makes the folder {tmp_path}/folder", f"renames {tmp_path}/new",
        f"removes {tmp_path}/old",
    ]  # fmt: skip
    (tmp_path / "later").write_text("x")
    assert len(events) == 4


def test_processes_and_connections_are_heard() -> None:
    with side_effects() as events, socket.socket() as wire:
        wire.connect_ex(("127.0.0.1", 9))
        subprocess.run([sys.executable, "-c", ""], check=True)
    assert events == ["connects to ('127.0.0.1', 9)", f"starts {sys.executable}"]


def test_the_cache_is_nobodys_business(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path))
    with side_effects() as events:
        (tmp_path / "fisher").write_text("x")
        (tmp_path / "__pycache__").mkdir()
    assert events == []
