"""A run of the tiny model, forgotten and measured: what is bundled in tests that measure again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


def write_measured(folder: Path, studio: Path, *, metrics: str = "nll,membership_auc") -> Path:
    """The run's folder, beside copies of the studio's `model` and `music`."""
    from encore.cli import app

    shutil.copytree(studio, folder, dirs_exist_ok=True)
    music, run = folder / "music", str(folder / "run")
    forget = [
        "forget", "--tracks", f"{music}/forget.txt", "--retain", f"{music}/retain.txt", "--holdout",
        f"{music}/holdout.txt", "--model", str(folder / "model"), "--method", "graddiff", "--steps", "2", "--out", run,
        "--requester", "A. Label", "--requested", "2026-11-20",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ENCORE_CACHE", str(studio / "cache"))
        assert app.run(forget) == 0
        assert app.run(["eval", run, "--metrics", metrics, "--seed", "3"]) == 0
    return folder / "run"
