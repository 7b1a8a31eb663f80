"""What is read of a run folder, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.report.made_run import write

from encore.errors import InputError
from encore.report.run_files import read_run


def test_all_of_it_is_read(made: Path) -> None:
    files = read_run(made)
    assert [snapshot["at"] for snapshot in files.snapshots] == [2, 4]
    assert files.snapshots[0]["forget"]["one"] == 2.5  # the later of two looks at one step
    assert {(sample.track, sample.role) for sample in files.samples} >= {("one", "base"), ("two", "unlearned")}
    assert files.loss == "NLL"


@pytest.mark.parametrize(
    ("gone", "words", "hint"),
    [
        ("request.json", "is not the folder of a run", "encore forget"),
        ("run.json", "did not finish", "--resume"),
        ("metrics.json", "was not measured yet", "encore eval"),
    ],
)
def test_a_run_that_is_not_whole(made: Path, gone: str, words: str, hint: str) -> None:
    (made / gone).unlink()
    with pytest.raises(InputError, match=words) as caught:
        read_run(made)
    assert hint in caught.value.hint


def test_a_second_phase_begins_where_the_first_ended(made: Path) -> None:
    lines = [{"phase": phase, "step": step, "snapshot": {"forget": {}}} for phase, step in ((1, 2), (1, 4), (2, 2))]
    (made / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"torn')
    assert [snapshot["at"] for snapshot in read_run(made).snapshots] == [2, 4, 6]


def test_lines_that_are_no_snapshots_are_passed_over(made: Path) -> None:
    odd = [{}, {"step": "x"}, {"step": 1, "phase": []}]
    lines = [*({"snapshot": {}} | line for line in odd), {"snapshot": 1, "step": 1}, 7, {"snapshot": {}, "step": 3}]
    (made / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [snapshot["at"] for snapshot in read_run(made).snapshots] == [3]


def test_samples_outside_the_folder_are_left_out(made: Path) -> None:
    (made / "secret.after.wav").write_bytes(b"x")
    (made / "samples/forget/link.after.wav").symlink_to(made / "secret.after.wav")
    names = ["../secret.after.wav", "forget/link.after.wav", "/etc/x.after.wav", "forget/../../secret.after.wav", 7]
    write(made / "samples/index.json", [{"file": name} for name in names] + ["x"])
    assert read_run(made).samples == []


@pytest.mark.parametrize("name", ["request.json", "run.json", "evaluation.json"])
def test_a_file_that_is_no_object(made: Path, name: str) -> None:
    write(made / name, [])
    with pytest.raises(InputError, match="is not a JSON object"):
        read_run(made)
