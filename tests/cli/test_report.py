"""`encore report`, and what `encore eval` leaves beside its figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import ModelCard
from tests.conftest import Done
from tests.report.made_run import write_run

Call = Callable[..., Done]


def test_it_is_made_anew_with_the_card(tmp_path: Path, call: Call) -> None:
    made = write_run(tmp_path / "made")
    done = call("report", made)
    assert (done.code, done.out.strip()) == (0, str(made / "report.html")), done.err
    assert "No evidence of retention" in (made / "report.html").read_text()
    assert ModelCard.load(made / "model/README.md").data.eval_results
    elsewhere = call("report", made, "--out", tmp_path / "new" / "page.html")
    assert elsewhere.code == 0
    assert (tmp_path / "new" / "page.html").read_bytes() == (made / "report.html").read_bytes()
    for command in ("report", "bundle"):  # a folder is no file to write
        done = call(command, made, "--out", tmp_path / "new")
        assert done.code == 1
        assert f"error: can't write {tmp_path / 'new'}: a folder of that name is in the way" in done.err
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_what_is_no_measured_run_is_refused_with_a_hint(tmp_path: Path, call: Call) -> None:
    made = write_run(tmp_path / "made")
    for gone, hint in (("metrics.json", "encore eval"), ("run.json", "--resume"), ("request.json", "encore forget")):
        (made / gone).unlink()
        done = call("report", made)
        assert (done.code, hint in done.err, done.out) == (3, True, ""), done.err
    assert not (made / "report.html").exists()


def test_originals_that_are_gone_are_told(tmp_path: Path, call: Call) -> None:
    done = call("report", write_run(tmp_path / "made"), "--embed-audio")
    assert (done.code, "one.wav is missing" in done.err) == (3, True), done.err


def test_a_measured_run_has_a_report_and_how_it_was_measured(studio: Path, call: Call) -> None:
    music = studio / "music"
    done = call(
        "forget", "--tracks", music / "forget.txt", "--retain", music / "retain.txt", "--holdout",
        music / "holdout.txt", "--model", studio / "model", "--method", "graddiff", "--steps", "2", "--out", "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(Path("run/run.json").read_text())["library"] == "transformers"
    assert ModelCard.load("run/model/README.md").data.eval_results is None
    done = call("eval", "run", "--metrics", "nll,membership_auc,relearn", "--seed", "1")
    assert done.code == 0, done.err
    assert "report.html" in done.err
    assert "one.wav" in Path("run/report.html").read_text()
    assert ModelCard.load("run/model/README.md").data.eval_results
    how = json.loads(Path("run/evaluation.json").read_text())
    assert how["full"] is False
    assert (how["seed"], how["metrics"]) == (1, ["nll", "membership_auc", "relearn"])
    assert how["models"]["unlearned"] == json.loads(Path("run/run.json").read_text())["unlearned_sha256"]
    before = Path("run/metrics.json").read_bytes()
    again = call("eval", "run", "--metrics", "nll,membership_auc,relearn", "--seed", "1", "--out", "again")
    assert again.code == 0, again.err
    assert Path("again/metrics.json").read_bytes() == before
    assert Path("again/report.html").exists()
    original = call("report", "run", "--embed-audio")
    assert original.code == 0, original.err
