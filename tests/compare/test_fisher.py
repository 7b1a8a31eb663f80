"""`benchmarks/fisher.py` as it is run, on a tiny size: its figures are ratios of that size, its errors are errors."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "fisher.py"
TINY = {"hidden": 32, "layers": 1, "vocab": 24, "samples": 3, "frames": 10, "text": 5, "pairs": 1}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    sizes = [f"--{name}={value}" for name, value in TINY.items()]
    return subprocess.run([sys.executable, SCRIPT, *sizes, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_rows_hold_time_memory_and_the_error_against_float64() -> None:
    done = run("--peers", "encore,opacus", "--json")
    assert done.returncode == 0, done.stderr
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in json.loads(done.stdout.splitlines()[-1])["rows"]}
    assert list(rows) == ["plain", "encore", "opacus"]
    row = rows["encore"]
    assert row["time_ratio"] > 0
    assert row["memory_ratio"] > 0
    assert 0 < row["error"] < 2e-6
    assert row["left_out"] == row["wrong"] == []
    if importlib.util.find_spec("opacus") is None:
        assert rows["opacus"]["error"] is rows["opacus"]["time_ratio"] is None
        assert "not installed" in rows["opacus"]["why"]


def test_an_unknown_peer_is_a_usage_error() -> None:
    done = run("--peers", "loop,encor")
    assert done.returncode == 2
    assert "no such peer: encor" in done.stderr
