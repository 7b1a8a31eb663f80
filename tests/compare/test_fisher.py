"""`benchmarks/fisher.py` as it is run, on a tiny size: its figures are ratios of that size, its errors are errors."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.forked import CONTEXT

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "fisher.py"
TINY = {"hidden": 32, "layers": 1, "vocab": 24, "samples": 3, "frames": 10, "text": 5, "pairs": 1}


SIZES = [f"--{name}={value}" for name, value in TINY.items()]


def forked(words: list[str], out: Path) -> None:
    """A script with its arguments, in a process that has torch loaded; its stdout goes into a file."""
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    sys.argv = words
    sys.path.insert(0, str(SCRIPT.parent))
    runpy.run_path(words[0], run_name="__main__")


@pytest.mark.slow
def test_rows_hold_time_memory_and_the_error_against_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    started: list[list[str]] = []

    def start(words: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        started.append(words[2:4])
        if words[2] == "memory":
            return process_of(words, **settings)  # as they are measured
        process = CONTEXT.Process(target=forked, args=(words[1:], tmp_path / "stdout"))
        process.start()
        process.join()
        return subprocess.CompletedProcess(words, process.exitcode or 0, (tmp_path / "stdout").read_text())

    process_of = subprocess.run
    monkeypatch.setattr(subprocess, "run", start)
    monkeypatch.setattr(sys, "argv", ["fisher.py", *SIZES, "--peers", "encore,opacus", "--json"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert started[:3] == [["reference", "loop"], ["time", "plain"], ["memory", "plain"]]
    assert ["time", "opacus"] in started
    lines = capsys.readouterr().out.splitlines()
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in json.loads(lines[-1])["rows"]}
    assert list(rows) == ["plain", "encore", "opacus"]
    row = rows["encore"]
    assert row["time_ratio"] > 0
    assert row["memory_ratio"] > 0
    assert 0 < row["error"] < 2e-6
    assert row["left_out"] == row["wrong"] == []
    if importlib.util.find_spec("opacus") is None:
        assert rows["opacus"]["error"] is rows["opacus"]["time_ratio"] is None
        assert "not installed" in rows["opacus"]["why"]


def test_an_unknown_peer_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(sys, "argv", ["fisher.py", *SIZES, "--peers", "loop,encor"])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert leaving.value.code == 2
    assert "no such peer: encor" in capsys.readouterr().err
