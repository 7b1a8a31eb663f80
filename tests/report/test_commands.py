"""How to do it again: what is printed can be typed."""

from __future__ import annotations

import html
import shlex
from pathlib import Path

from tests.report.made_run import change

from encore.report.commands import commands
from encore.report.page import render
from encore.report.run_files import read_run


def test_everything_that_was_not_a_default(made: Path) -> None:
    weights, *typed = commands(read_run(made))
    assert weights == f"# weights of tiny: SHA-256 {'c' * 64}"
    install, forget, evaluate, report = map(shlex.split, typed)
    assert install == ["pip", "install", "encore-music==0.1.0", "torch==2.13.0"]
    assert forget == [
        "encore", "forget", "--tracks", "list.txt", "--out", "runs/made", "--method", "encore", "--seed", "3",
        "--holdout", "un heard.txt", "--drop-duplicates", "-o", "steps=4",
    ]  # fmt: skip
    assert evaluate == ["encore", "eval", "runs/made", "--embedder", "latents"]  # another model's default is another
    assert report == ["encore", "report", "runs/made"]


def test_how_it_was_measured(made: Path) -> None:
    settings = {
        "golds": {"gold": "a b", "gold2": "c"},
        "metrics": ["nll", "fad"],
        "seed": 4,
        "force": True,
        "samples_per_caption": 3,
    }
    change(made / "evaluation.json", **settings, embedder="other")
    *_, evaluate, _ = commands(read_run(made))
    assert shlex.split(evaluate)[3:] == [
        "--gold", "a b", "--gold2", "c", "--metrics", "nll,fad", "--seed", "4", "--embedder", "other",
        "--samples-per-caption", "3", "--force",
    ]  # fmt: skip


def test_the_full_set_is_asked_for_again(made: Path) -> None:
    change(made / "evaluation.json", full=True)
    assert " --full" in commands(read_run(made))[-2]


def test_case_E6_the_plugins_that_were_used_are_installed_again_and_named_by_hash(made: Path) -> None:
    plugins = [
        {"name": "b", "distribution": "encore-music", "version": "0.1.0", "sha256": "d" * 64},
        {"name": "m", "distribution": "my-method", "version": "2.0", "sha256": "1" * 64},
        {"name": "e", "distribution": "my-metric", "version": "3.1", "sha256": None},
        {"name": "u", "distribution": "not-used", "version": "9", "sha256": "2" * 64},
    ]
    change(made / "run.json", distributions=["encore-music", "my-method"], plugins=plugins)
    golds = {"gold": "folder/gold"}
    change(made / "evaluation.json", distributions=["encore-music", "my-metric"], plugins=plugins, golds=golds)
    change(made / "request.json", list_sha256="3" * 64)
    *comments, install, _, evaluate, _ = commands(read_run(made))
    assert comments == [
        f"# list.txt: SHA-256 {'3' * 64}", f"# weights of tiny: SHA-256 {'c' * 64}",
        f"# weights of folder/gold (gold): SHA-256 {'f' * 64}", f"# code of my-method 2.0: SHA-256 {'1' * 64}",
    ]  # fmt: skip
    assert shlex.split(install)[2:] == ["encore-music==0.1.0", "torch==2.13.0", "my-method==2.0", "my-metric==3.1"]
    assert "--gold folder/gold" in evaluate


def test_case_E8_dates_and_requester_are_in_the_report(made: Path) -> None:
    assert "own word" not in render(read_run(made))
    change(made / "request.json", requester="A. Label", requested="2026-11-20", begun="2026-11-28T16:00:00Z")
    change(made / "run.json", finished="2026-11-28T16:01:00Z")
    change(made / "evaluation.json", measured="2026-11-28T16:02:00Z")
    page = html.unescape(render(read_run(made)))
    for word in ("A. Label", "20 November 2026", "16:00 UTC", "16:01 UTC", "28 November 2026, 16:02 UTC"):
        assert word in page
    assert "Names and dates are stated by the author, and not verified." in page
