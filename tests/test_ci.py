"""`.ci/run`, up to the pieces of work: with commands that fail in place of the real ones."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("cuda", "made", "status"), [(0, 7, 7), (3, 0, 3), (3, 7, 3)])
def test_what_fails_first_leaves_nothing_running_and_hides_no_log(tmp_path, cuda, made, status) -> None:
    commands = {
        "bin/make": f"echo made $1; exit {made}", "tools/check_cuda.sh": f"echo of the sources; exit {cuda}",
        "bin/id": "echo 0", "bin/apt-get": "sleep 0.5; echo of the tools >&2",
    }  # fmt: skip
    for name, line in commands.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    path_with_these = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", str(tmp_path / ".ci" / "run")], env={**os.environ, "PATH": path_with_these}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert "of the sources" in done.stdout
    assert "made docs" in done.stdout
    assert done.stdout.count("of the tools") == 2  # update and install
