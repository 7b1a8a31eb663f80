"""JSON of a run, a bench or a bundle that is not as Encore wrote it: exit 3 and one sentence, never a surprise."""

from __future__ import annotations

import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Done
from tests.faults.test_hostile_models import NONSENSE, leaves, put
from tests.report.made_run import write_run

from encore.errors import InputError
from encore.evidence.archive import Archive
from encore.evidence.manifest import read_manifest
from encore.files import parsed_json, read_json
from encore.store.schemas import Evaluation

Call = Callable[..., Done]
DEEP = "[" * 100_000
FILES = ("run.json", "request.json", "evaluation.json", "metrics.json")


def told(done: Done, *codes: int) -> None:
    assert done.code in codes, done.err
    assert "not expected" not in done.err
    assert "Traceback" not in done.err
    assert done.err.count("error:") == (done.code != 0)


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "{", "", "NaN", "[1e999]", "\udcff", "1" * 5000])
def test_case_C10_what_is_no_json_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"file\.json can't be read as JSON"):
        read_json(path)


def test_case_C10_a_shape_names_the_first_key_at_fault() -> None:
    with pytest.raises(InputError, match=r"x was changed.*: metrics\.0: input should be a valid string"):
        parsed_json('{"metrics": [5, null]}', "x", Evaluation)


def test_case_C10_a_manifest_of_brackets_is_refused(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "deep.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", DEEP)
    with zipfile.ZipFile(path) as archive, pytest.raises(InputError, match="manifest"):
        read_manifest(Archive(path, archive))
    told(call("verify", path), 3)
    told(call("verify", path, "--json"), 3)


@pytest.mark.parametrize("name", ["model/evil.py", "model/sub/EVIL.PY", "evil.so"])
def test_case_C1_a_bundle_with_code_in_it_is_refused(tmp_path: Path, call: Call, name: str) -> None:
    path = tmp_path / "code.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", "{}")
        archive.writestr(name, "open('marker', 'w')")
    done = call("verify", path)
    told(done, 3)
    assert f"{name} is code" in done.err


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("run.json", {"seed": -5}),
        ("run.json", {"tracks": {"forget": "many", "retain": 0, "holdout": 0}}),
        ("run.json", {"options": [1]}),
        ("run.json", {"plugins": [None]}),
        ("run.json", {"timings": {"forget": "long"}}),
        ("request.json", {"forget": [5, None]}),
        ("request.json", {"forget": [{"id": 5, "sha256": None}]}),
        ("evaluation.json", {"metrics": [5, None]}),
        ("evaluation.json", {"seed": -5}),
        ("evaluation.json", {"golds": ["a"]}),
        ("metrics.json", {"results": [5]}),
        ("metrics.json", {"results": [{"metric": 5}]}),
        ("metrics.json", {"schema": 7}),
    ],
    ids=str,
)
def test_case_C10_values_of_another_kind_are_refused(made: Path, call: Call, name: str, values: dict[str, Any]) -> None:
    path = made / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    done = call("report", made)
    told(done, 3)
    assert name in done.err


@pytest.mark.parametrize(
    "values", [{"n": 10**400}, {"value": 1.7e308, "n": 10**6}, {"value": 0.0, "low": 0.0, "high": 0.0, "n": 0}], ids=str
)
def test_case_C10_figures_beyond_arithmetic_are_shown_or_refused(
    made: Path, call: Call, values: dict[str, Any]
) -> None:
    metrics = json.loads((made / "metrics.json").read_text())
    metrics["results"] = [row if row["value"] is None else {**row, **values} for row in metrics["results"]]
    (made / "metrics.json").write_text(json.dumps(metrics))
    told(call("report", made), 0, 3)


@pytest.mark.parametrize("date", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_case_C10_a_date_that_no_calendar_has_in_utc_is_shown_as_it_is(made: Path, call: Call, date: str) -> None:
    request = json.loads((made / "request.json").read_text())
    (made / "request.json").write_text(json.dumps({**request, "begun": date}))
    told(call("report", made), 0)
    assert date in (made / "report.html").read_text()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", [DEEP, "[]", "5", "null", "{}"])
def test_case_C10_files_of_another_kind_are_refused(made: Path, call: Call, name: str, text: str) -> None:
    (made / name).write_text(text)
    told(call("report", made), *((0, 3) if name == "evaluation.json" else (3,)))


@pytest.mark.parametrize(
    "values", [{"seeds": [-5]}, {"seeds": []}, {"metrics": [5, None]}, {"samples_per_caption": 0}, {"methods": []}]
)
def test_case_C10_a_bench_of_another_kind_is_refused(tmp_path: Path, call: Call, values: dict[str, Any]) -> None:
    plan = {"schema": 1, "encore": "0.1.0", "methods": {"ga": []}, "seeds": [0], **values}
    (tmp_path / "b").mkdir()
    (tmp_path / "b/bench.json").write_text(json.dumps(plan))
    told(call("bench", "--out", tmp_path / "b", "--resume"), 2, 3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(6))
def test_case_C10_mutated_files_are_read_or_refused(made: Path, call: Call, tmp_path: Path, seed: int) -> None:
    """Some 60 for each command that reads a run without opening its model."""
    draw, refusals = random.Random(seed), 0
    for _ in range(12):
        run = Path(shutil.copytree(made, tmp_path / "one"))
        changed = []
        for _ in range(draw.randint(1, 2)):
            name = draw.choice([*FILES, "samples/index.json"])
            document = json.loads((run / name).read_text())
            place, value = draw.choice(leaves(document)), draw.choice(NONSENSE)
            put(document, place, value)
            (run / name).write_text(json.dumps(document))
            changed.append((name, place, value))
        for command in (["report", run], ["bundle", run, "--out", tmp_path / "b.zip"]):
            done = call(*command)
            assert done.code in (0, 2, 3), (changed, command[0], done.err)
            assert "not expected" not in done.err, (changed, command[0])
            refusals += done.code != 0
        (tmp_path / "b.zip").unlink(missing_ok=True)
        shutil.rmtree(run)
    assert refusals


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
def test_case_C10_mutated_files_of_a_run_that_is_measured_or_resumed(studio: Path, call: Call, seed: int) -> None:
    music, draw = studio / "music", random.Random(seed)
    forget = [
        "forget", "--tracks", music / "forget.txt", "--retain", music / "retain.txt", "--model", studio / "model",
        "--method", "graddiff", "--steps", "1", "--out", "run",
    ]  # fmt: skip
    assert call(*forget).code == 0
    for number in range(8):
        run = Path(shutil.copytree("run", f"run-{number}"))
        name = draw.choice(["run.json", "request.json"])
        document = json.loads((run / name).read_text())
        place, value = draw.choice(leaves(document)), draw.choice(NONSENSE)
        put(document, place, value)
        (run / name).write_text(json.dumps(document))
        for command in (["eval", run, "--metrics", "nll"], [*forget[:-1], run, "--resume"]):
            done = call(*command)
            assert done.code in (0, 2, 3), (name, place, value, command[0], done.err)
            assert "not expected" not in done.err, (name, place, value, command[0])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [*FILES, "log.jsonl", "samples/index.json"])
def test_case_C10_a_pipe_or_a_device_in_a_run_is_not_waited_for(made: Path, call: Call, name: str) -> None:
    for put_there in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (made / name).unlink(missing_ok=True)
        put_there(made / name)
        done = call("report", made)
        told(done, 0, 3)
        assert done.code == 0 or name in done.err
        told(call("runs", made.parent), 0)
