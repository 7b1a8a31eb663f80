"""`.ci/run`, with commands that fail in place of the real ones."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path):
    """Call: run a copy of `.ci/run` whose `make TARGET …` and check of the sources end with these codes."""

    def run(made: int = 0, lint: int = 0, cuda: int = 0) -> subprocess.CompletedProcess[str]:
        commands = {
            "bin/make": f'echo "made $*"; [ "$1" != .venv/.stamp ] || exit {made}; [ "$1" != lint ] || exit {lint}',
            "tools/check_cuda.sh": f"echo of the sources; exit {cuda}", ".venv/bin/python": "exit 0",
            "bin/id": "echo 0", "bin/apt-get": "sleep 0.5; echo of the tools >&2",
        }  # fmt: skip
        for name, line in commands.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"#!/bin/sh\n{line}\n")
            path.chmod(0o755)
        (tmp_path / ".ci").mkdir()
        shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
        path_with_these = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
        return subprocess.run(
            ["bash", str(tmp_path / ".ci" / "run")], env={**os.environ, "PATH": path_with_these}, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip

    return run


def test_an_environment_that_fails_leaves_nothing_running_and_hides_no_log(run) -> None:
    done = run(made=7)
    assert done.returncode == 7
    assert done.stdout.count("of the tools") == 2  # update and install
    assert "made tests" not in done.stdout


@pytest.mark.parametrize(("lint", "cuda", "fails"), [(0, 0, False), (3, 0, True), (0, 4, True)])
def test_a_piece_that_fails_hides_no_other(run, lint, cuda, fails) -> None:
    done = run(lint=lint, cuda=cuda)
    assert (done.returncode != 0) == fails
    for piece, status in (("make lint", lint), ("tools/check_cuda.sh", cuda), ("make docs", 0), ("make demo", 0)):
        assert f"== {piece} : exit {status} " in done.stdout
    assert "of the sources" in done.stdout
    assert done.stdout.count("made tests") == 5
