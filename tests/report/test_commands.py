"""How to do it again: what is printed can be typed."""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.report.made_run import change

from encore.report.commands import commands
from encore.report.files import read_run


def test_everything_that_was_not_a_default(made: Path) -> None:
    install, forget, evaluate, report = map(shlex.split, commands(read_run(made)))
    assert install == ["pip", "install", "encore-music==0.1.0", "torch==2.13.0"]
    assert forget == [
        "encore", "forget", "--tracks", "list.txt", "--out", "runs/made", "--method", "encore", "--seed", "3",
        "--holdout", "un heard.txt", "--drop-duplicates", "-o", "steps=4",
    ]  # fmt: skip
    assert evaluate == ["encore", "eval", "runs/made", "--embedder", "latents"]  # another model's default is another
    assert report == ["encore", "report", "runs/made"]


def test_how_it_was_measured(made: Path) -> None:
    settings = {"golds": {"gold": "a b", "gold2": "c"}, "metrics": ["nll", "fad"], "seed": 4, "force": True, "draws": 3}
    change(made / "evaluation.json", **settings, embedder="other")
    assert shlex.split(commands(read_run(made))[2])[3:] == [
        "--gold", "a b", "--gold2", "c", "--metrics", "nll,fad", "--seed", "4", "--embedder", "other", "--draws", "3",
        "--force",
    ]  # fmt: skip


def test_the_full_set_is_asked_for_again(made: Path) -> None:
    change(made / "evaluation.json", full=True)
    assert " --full" in commands(read_run(made))[2]
