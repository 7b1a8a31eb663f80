"""`encore bundle` and `encore verify`, on a real run: packed, checked, and measured again."""

from __future__ import annotations

import getpass
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Done, no_evaluation_is_read
from tests.evidence.measured import write_measured
from tests.report.made_run import tie_again, write_run

Call = Callable[..., Done]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, _studio: Path) -> Path:
    """A run of the tiny model with a few figures; don't write into it."""
    return write_measured(tmp_path_factory.mktemp("measured"), _studio)


def test_packed_checked_and_measured_again(
    measured: Path, studio: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = call("bundle", measured, "--out", "b.zip", "--with-model")
    assert (done.code, done.out.strip()) == (0, "b.zip"), done.err
    assert "not signed" in done.err
    assert "left out: names of folders; the training log; ids, titles and captions" in done.err
    assert "the time is stated by the author, and not verified" in done.err
    done = call("verify", "b.zip", "--run", measured)
    assert "are those of the bundle" in done.err
    assert done.code == 0, done.err
    assert "metrics.json" in done.out
    assert "hash only" in done.out
    no_evaluation_is_read(monkeypatch)  # measured again is not looked up again
    done = call("verify", "b.zip", "--rerun", "--json", "--run", measured)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert {row["metric"] for row in told["compared"]} >= {"nll", "membership_auc"}
    assert {row["state"] for row in told["compared"]} == {"same"}
    assert (told["holds"], told["verdict"], told["why"]) == (True, "holds", None)
    assert told["members"]["metrics.json"]["checked"] == "measured again"
    done = call("verify", "b.zip", "--rerun", "--run", measured, "--tolerance", "exact")
    count = len(told["compared"])
    assert f"{count} figures: {count} identical" in done.err.splitlines()
    assert [path.name for path in Path.cwd().iterdir()] == ["b.zip"]


@pytest.fixture
def elsewhere(measured: Path, tmp_path: Path) -> Path:
    """The tracks and the base model as an outsider has them: other folders, other names, one in another container."""

    folder = tmp_path / "outsider"
    shutil.copytree(measured.parent / "model", folder / "models/deep/model")
    shutil.copytree(measured / "model", folder / "models/model")  # another model of that name
    (folder / "mine").mkdir()
    for number, path in enumerate(sorted((measured.parent / "music").glob("*.wav"))):
        shutil.copy(path, folder / "mine" / f"renamed {number}.wav")
    return folder


def test_case_C8_an_outsider_finds_tracks_and_models_by_hash(
    measured: Path, studio: Path, elsewhere: Path, call: Call, tmp_path: Path
) -> None:
    assert call("bundle", measured, "--out", "b.zip", "--with-model").code == 0
    shutil.move(measured.parent, tmp_path / "moved")  # nothing is where the run had it
    try:
        done = call("verify", "b.zip", "--rerun", "--json")
        told = json.loads(done.out)
        assert (done.code, told["verdict"]) == (6, "not all could be checked"), done.err
        assert "forget tracks not found: one.wav, two.wav, long.wav" in told["why"]
        everything = ["verify", "b.zip", "--rerun", "--json", "--root", elsewhere]
        done = call(*everything)  # the captions of what is to be kept are in no bundle
        told = json.loads(done.out)
        assert done.code == 6, done.err
        assert told["absent"].keys() == {"retain", "holdout"}
        states = {(row["metric"], row["set"]): row["state"] for row in told["compared"]}
        assert states["nll", "forget"] in ("same", "rounding")
        assert states["nll", "retain"] == states["membership_auc", "forget"] == "unmeasured"
        lists = tmp_path / "moved/music"
        done = call(*everything, "--catalog", lists / "retain.txt", "--catalog", lists / "catalog.jsonl")
        told = json.loads(done.out)
        assert done.code == 0, done.err
        assert {row["state"] for row in told["compared"]} == {"same"}
    finally:
        shutil.move(tmp_path / "moved", measured.parent)


def test_case_C8_the_same_recording_in_another_container_is_found(
    measured: Path, studio: Path, elsewhere: Path, call: Call
) -> None:
    import soundfile

    for path in (elsewhere / "mine").glob("*.wav"):
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(path.with_suffix(".flac"), samples, rate)
        path.unlink()
    from encore.evidence.lookup import find_inputs

    assert call("bundle", measured, "--out", "b.zip").code == 0
    folder = Path("folder")
    with zipfile.ZipFile("b.zip") as archive:
        archive.extractall(folder)
    how = json.loads((folder / "evaluation.json").read_text())
    found = find_inputs(folder, how, roots=[elsewhere])
    assert "forget" not in found.absent
    files = [track["file"] for track in json.loads((folder / "request.json").read_text())["forget"]]
    assert {Path(file).suffix for file in files} == {".flac"}


def test_case_C14_a_real_bundle_names_no_folder_and_no_user(measured: Path, studio: Path, call: Call) -> None:
    assert call("bundle", measured, "--out", "b.zip", "--with-model").code == 0
    with zipfile.ZipFile("b.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    request = json.loads((measured / "request.json").read_text())
    words = [str(measured.parent), measured.parent.name, str(Path.home()), f'"{getpass.getuser()}"', str(Path.cwd())]
    words += [f'"{track["id"]}"' for name in ("retain", "holdout") for track in request[name]]
    for name, content in members.items():
        for word in words:
            assert word.encode() not in content, (name, word)


def test_case_E8_dates_are_utc_and_who_asked_is_recorded(measured: Path) -> None:
    request, run, how = (
        json.loads((measured / f"{name}.json").read_text()) for name in ("request", "run", "evaluation")
    )
    assert (request["requester"], request["requested"]) == ("A. Label", "2026-11-20")
    times = [request["begun"], run["finished"], how["measured"]]
    assert times == sorted(times)
    assert all(len(time) == 20 and time.endswith("Z") for time in times)
    page = (measured / "report.html").read_text()
    assert "A. Label" in page
    assert "20 November 2026" in page


def test_case_E8_no_comparison_of_runs_reads_dates_or_who_asked(measured: Path, tmp_path: Path) -> None:
    from encore.unlearn.records import check_other_run

    request = json.loads((measured / "request.json").read_text())
    apart = {"folder", "requester", "requested", "begun", "list_sha256"}
    (tmp_path / "request.json").write_text(json.dumps(request | dict.fromkeys(apart - {"folder"}, "another")))
    check_other_run(tmp_path / "request.json", {key: value for key, value in request.items() if key not in apart})


@pytest.mark.parametrize("date", ["20 Nov", "2026-13-01", "2026-11-28T16:00:00", ""])
def test_case_E8_a_date_that_is_none(date: str, studio: Path, call: Call) -> None:
    done = call("forget", "--tracks", studio / "music/forget.txt", "--requested", date, "--dry-run")
    assert done.code == 2, done.err
    assert "is not a date" in done.err


def test_case_E6_the_command_of_a_run_names_its_list_and_model_by_hash(measured: Path) -> None:
    import hashlib

    page = (measured / "report.html").read_text()
    listed = hashlib.sha256((measured.parent / "music/forget.txt").read_bytes()).hexdigest()
    assert f"# {measured.parent}/music/forget.txt: SHA-256 {listed}" in page
    assert "--requester &#39;A. Label&#39; --requested 2026-11-20" in page
    run, how = (json.loads((measured / f"{name}.json").read_text()) for name in ("run", "evaluation"))
    assert run["distributions"] == how["distributions"] == ["encore-music"]


def forged(run: Path, change: Callable[[dict[tuple[str, str, str], dict[str, Any]]], None]) -> None:
    """Change rows of `metrics.json`, and all hashes with them."""
    metrics = json.loads((run / "metrics.json").read_text())
    change({(row["metric"], row["model"], row["set"]): row for row in metrics["results"]})
    (run / "metrics.json").write_text(json.dumps(metrics))
    tie_again(run)


def test_figures_that_were_made_up_do_not_come_out_again(
    measured: Path, studio: Path, tmp_path: Path, call: Call
) -> None:
    run = shutil.copytree(measured, tmp_path / "run")

    def change(rows: dict[tuple[str, str, str], dict[str, Any]]) -> None:
        rows["nll", "unlearned", "forget"] |= {"value": 99.0, "low": -1e9, "high": 1e9}
        kept = rows["nll", "base", "retain"]
        kept["per_track"] = {track: figure + 0.01 for track, figure in kept["per_track"].items()}

    forged(run, change)
    assert call("bundle", run, "--out", "b.zip").code == 0
    assert call("verify", "b.zip").code == 0  # whole, and made up
    done = call("verify", "b.zip", "--run", run, "--rerun")
    assert done.code == 4, done.err
    assert "DIFFERS: value, low, high" in done.out
    assert "DIFFERS: track" in done.out
    assert "nll (unlearned, forget)" in done.err
    done = call("verify", "b.zip", "--run", run, "--rerun", "--json")
    told = json.loads(done.out)
    assert (done.code, told["holds"], told["verdict"]) == (4, False, "figures differ")
    assert "2 of" in told["why"]
    wrong = {(row["model"], row["set"]) for row in told["compared"] if row["state"] == "differs"}
    assert wrong == {("unlearned", "forget"), ("base", "retain")}


def test_case_C4_a_false_machine_in_the_bundle_loosens_nothing(
    measured: Path, studio: Path, tmp_path: Path, call: Call
) -> None:
    """A figure moved to its interval's end, and "another machine": exit 5, and 0 only where the verifier says so."""
    run = shutil.copytree(measured, tmp_path / "run")
    how = json.loads((run / "evaluation.json").read_text())
    how["hardware"]["name"] = "Another Machine"
    (run / "evaluation.json").write_text(json.dumps(how))

    def change(rows: dict[tuple[str, str, str], dict[str, Any]]) -> None:
        row = rows["nll", "unlearned", "retain"]
        row["value"] = row["low"]

    forged(run, change)
    assert call("bundle", run, "--out", "b.zip").code == 0
    done = call("verify", "b.zip", "--run", run, "--rerun", "--json")
    told = json.loads(done.out)
    assert (done.code, told["verdict"]) == (5, "beyond the tolerance"), done.err
    assert told["why"].endswith("1 only within their intervals: nll (unlearned, retain)")
    assert "'Another Machine'" in done.err
    assert call("verify", "b.zip", "--run", run, "--rerun", "--tolerance", "chance").code == 0


def test_exit_codes(tmp_path: Path, call: Call) -> None:
    made = write_run(tmp_path / "made")
    bundle = tmp_path / "made.evidence.zip"
    assert call("verify", bundle).code == 3
    assert call("bundle", made).code == 0
    assert call("verify", bundle, "--rerun").code == 2
    assert call("verify", bundle, "--key", tmp_path / "none.pub").code == 3
    assert call("verify", bundle, "--tsa-certificate", tmp_path / "none.pem").code == 3
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


def test_case_C6_an_evaluation_that_was_killed_between_its_files_is_not_bundled(
    measured: Path, studio: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encore.evaluate import run as evaluate_run

    run = shutil.copytree(measured, tmp_path / "run")
    monkeypatch.setattr(evaluate_run, "write_json", killed)
    assert call("eval", run, "--metrics", "nll", "--seed", "4").code == 1
    monkeypatch.undo()
    monkeypatch.setenv("ENCORE_CACHE", str(studio / "cache"))
    monkeypatch.chdir(tmp_path)
    done = call("bundle", run)
    assert done.code == 3
    assert "metrics.json is not the file that evaluation.json was written for" in done.err
    assert f"evaluate again: encore eval {run}" in done.err
    assert call("eval", run, "--metrics", "nll", "--seed", "4").code == 0
    assert call("bundle", run).code == 0


class Killed(BaseException):
    """A process that is no more."""


def killed(*_: object) -> None:
    raise Killed
