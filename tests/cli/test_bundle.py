"""`encore bundle` and `encore verify`, on a real run: packed, checked, and measured again."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Done, no_evaluation_is_read
from tests.report.made_run import write_run

Call = Callable[..., Done]
METRICS = "nll,membership_auc"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, _studio: Path) -> Path:
    """A run of the tiny model with a few figures; don't write into it."""
    from encore.cli import app

    folder = tmp_path_factory.mktemp("measured")
    shutil.copytree(_studio, folder, dirs_exist_ok=True)
    music, run = folder / "music", str(folder / "run")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("ENCORE_CACHE", str(_studio / "cache"))
    forget = [
        "forget", "--tracks", f"{music}/forget.txt", "--retain", f"{music}/retain.txt", "--holdout",
        f"{music}/holdout.txt", "--model", str(folder / "model"), "--method", "graddiff", "--steps", "2", "--out", run,
    ]  # fmt: skip
    assert app.run(forget) == 0
    assert app.run(["eval", run, "--metrics", METRICS, "--seed", "3"]) == 0
    monkeypatch.undo()
    return folder / "run"


def test_packed_checked_and_measured_again(
    measured: Path, studio: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = call("bundle", measured, "--out", "b.zip", "--with-model")
    assert (done.code, done.out.strip()) == (0, "b.zip"), done.err
    assert "not signed" in done.err
    done = call("verify", "b.zip", "--run", measured)
    assert "are those of the bundle" in done.err
    assert done.code == 0, done.err
    assert "metrics.json" in done.out
    no_evaluation_is_read(monkeypatch)  # measured again is not looked up again
    for more in (["--run", measured], []):  # from the run's folder, and from the model in the bundle
        done = call("verify", "b.zip", "--rerun", "--json", *more)
        assert done.code == 0, done.err
        told = json.loads(done.out)
        assert {row["metric"] for row in told["compared"]} >= {"nll", "membership_auc"}
        assert {row["state"] for row in told["compared"]} == {"same"}
        assert (told["holds"], told["why"]) == (True, None)
    done = call("verify", "b.zip", "--rerun", "--run", measured)
    count = len(told["compared"])
    assert done.err.splitlines()[-1] == f"all {count} figures come out again, {count} of them to the last digit"
    assert [path.name for path in Path.cwd().iterdir()] == ["b.zip"]


def test_figures_that_were_made_up_do_not_come_out_again(
    measured: Path, studio: Path, tmp_path: Path, call: Call
) -> None:
    run = shutil.copytree(measured, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    for row in metrics["results"]:
        if (row["metric"], row["model"], row["set"]) == ("nll", "unlearned", "forget"):
            row["value"], row["low"], row["high"] = 99.0, -1e9, 1e9
        if (row["metric"], row["model"], row["set"]) == ("nll", "base", "retain"):
            row["per_track"] = {track: figure + 0.01 for track, figure in row["per_track"].items()}
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert call("bundle", run, "--out", "b.zip").code == 0
    assert call("verify", "b.zip").code == 0  # whole, and made up
    done = call("verify", "b.zip", "--run", run, "--rerun")
    assert done.code == 4, done.err
    assert "DIFFERS: value, low, high" in done.out
    assert "DIFFERS: track" in done.out
    assert "nll (unlearned, forget)" in done.err
    done = call("verify", "b.zip", "--run", run, "--rerun", "--json")
    told = json.loads(done.out)
    assert (done.code, told["holds"]) == (4, False)
    assert "2 of" in told["why"]
    wrong = {(row["model"], row["set"]) for row in told["compared"] if not row["holds"]}
    assert wrong == {("unlearned", "forget"), ("base", "retain")}


def test_exit_codes(tmp_path: Path, call: Call) -> None:
    made = write_run(tmp_path / "made")
    bundle = tmp_path / "made.evidence.zip"
    assert call("verify", bundle).code == 3
    assert call("bundle", made).code == 0
    assert call("verify", bundle, "--rerun").code == 2
    assert call("verify", bundle, "--key", tmp_path / "none.pub").code == 3
    whole = bundle.read_bytes()
    bundle.write_bytes(whole.replace(b"4.4", b"4.5", 1))
    done = call("verify", bundle)
    assert (done.code, done.out) == (3, ""), done.err
    with zipfile.ZipFile(bundle, "w") as archive, zipfile.ZipFile(io.BytesIO(whole)) as before:
        for name in before.namelist():
            archive.writestr(name, before.read(name) + b" " * (name == "metrics.json"))
    done = call("verify", bundle, "--json")
    told = json.loads(done.out)
    assert (done.code, told["holds"], told["details"]) == (3, False, ["metrics.json was changed"])
    assert told["why"].endswith("is not as it was made: 1 file differs")
    assert told["why"] in done.err
    (made / "metrics.json").unlink()
    assert call("bundle", made).code == 3
