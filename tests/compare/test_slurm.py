"""Slurm scripts, run by a stand-in of sbatch that starts a real process for each task."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.test_bench import SNAG, flags

from encore.cli.bench import _write_scripts
from encore.compare.plan import PLAN, Trial
from encore.compare.scheduler import last_error, log_file
from encore.compare.slurm import MOST, is_running, write_scripts
from encore.errors import UsageError
from encore.store.run_folder import RunFolder

TRIALS = [Trial("npo@long", 0), Trial("ga", 1, 2), Trial("ga", 0, list="pop")]
ODD = 'o\'dd $HOME `x` "50%" & ü;'
PYTHON = """\
#!/bin/sh
printf '%s\\n' "$@"
echo "threads $OMP_NUM_THREADS" >&2
[ "$7" != ga/seed-1-requests-2 ]
"""


def options(script: Path) -> dict[str, str]:
    """The script's options, read as sbatch reads them: words with shell quotes, before the first command."""
    head = script.read_text().partition("\nif ")[0].splitlines()
    lines = [line.removeprefix("#SBATCH ") for line in head if line.startswith("#SBATCH ")]
    words = [word for line in lines for word in shlex.split(line)]
    return dict(word.removeprefix("--").partition("=")[::2] for word in words)


def sbatch(script: Path, **environment: str) -> list[int]:
    """Run each task of the array; returns the exit codes."""
    last = int(re.match(r"0-(\d+)", options(script)["array"])[1])
    return [
        subprocess.run(
            ["bash", script], env={**os.environ, **environment, "SLURM_ARRAY_TASK_ID": str(task)}, check=False
        ).returncode
        for task in range(last + 1)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bench in a folder of an odd name, and a Python of an odd name that prints its arguments."""
    python = tmp_path / f"py {ODD}"
    python.write_text(PYTHON)
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.delenv("OMP_NUM_THREADS")
    out = tmp_path / f"bench {ODD}"
    out.mkdir()
    (out / PLAN).write_text("{}")
    return out


def test_each_task_runs_the_command_of_the_local_scheduler(folder):
    (script,) = write_scripts(TRIALS, folder / PLAN, jobs=2, resources={"partition": "gpu", "exclusive": ""})
    read = options(script)
    assert read["array"] == "0-2%2"
    assert read["partition"] == "gpu"
    assert read["exclusive"] == ""
    assert read["output"].replace("%%", "%").rpartition("/logs/")[0] == str(folder)
    assert sbatch(script, SLURM_CPUS_ON_NODE="3") == [0, 1, 0]
    for trial in TRIALS:
        printed = log_file(trial.name, folder).read_text().splitlines()
        assert printed == ["-m", "encore", "bench", "--out", str(folder), "--trial", trial.name, "threads 3"]
    assert sbatch(script, OMP_NUM_THREADS="5") == [0, 1, 0]
    assert log_file("npo@long/seed-0", folder).read_text().splitlines()[-1] == "threads 5"  # logs are appended to


def test_a_node_without_the_folder_says_so(folder, capfd):
    (script,) = write_scripts(TRIALS[:1], folder / PLAN)
    (folder / PLAN).unlink()
    assert sbatch(script) == [3]
    assert f"does not see the bench in {folder}: all nodes must share its folder" in capfd.readouterr().err


def test_scripts_keep_to_the_limit_of_an_array(tmp_path):
    trials = [Trial("ga", seed) for seed in range(MOST + 2)]
    scripts = write_scripts(trials, tmp_path / PLAN)
    assert [options(script)["array"] for script in scripts] == ["0-999", "0-1"]
    assert "ga/seed-1001" in scripts[1].read_text()
    assert write_scripts(trials[:1], tmp_path / PLAN) == scripts[:1]
    assert sorted(tmp_path.glob("*.sh")) == scripts[:1]  # no earlier ones remain
    assert write_scripts([], tmp_path / PLAN) == []


@pytest.mark.parametrize("name", ["array", "Partition", "a b", "gres\n"])
def test_options_that_sbatch_cannot_read(tmp_path, name):
    with pytest.raises(UsageError):
        write_scripts(TRIALS, tmp_path / PLAN, resources={name: "1"})
    with pytest.raises(UsageError):
        write_scripts(TRIALS, tmp_path / PLAN, resources={"comment": "a\nb"})
    with pytest.raises(UsageError, match="line break"):
        write_scripts(TRIALS, tmp_path / "a\nb" / PLAN)
    assert not list(tmp_path.iterdir())


def test_values_of_options_are_quoted(tmp_path):
    given = {"comment": "two 'words' #1", "constraint": "[a|b]&c", "time": "2-00:00:00", "output": "/dev/null"}
    (script,) = write_scripts(TRIALS, tmp_path / PLAN, resources=given)
    assert options(script).items() >= given.items()


def test_requeued_tasks_wait_and_only_those_that_ended_by_themselves_failed(folder, monkeypatch, capfd):
    trials = [Trial("ga", seed) for seed in range(6)]
    (script,) = write_scripts(trials, folder / PLAN)
    sbatch(script, SLURM_ARRAY_JOB_ID="7")
    for trial in trials[:4]:
        with log_file(trial.name, folder).open("a") as log:
            log.write("error: interrupted by SIGTERM\n")
    answers = {
        "squeue": [
            "0|PENDING|{0}",
            "1|REQUEUE_HOLD|{0}",
            "2|RUNNING|/other/slurm-1.sh",
            "9|PENDING|{0}",
            "N/A|PENDING|x",
        ],
        "sacct": ["7_2|PREEMPTED", "7_3|FAILED", "7_4|TIMEOUT", "7_5|COMPLETED"],
    }
    programs = folder.parent / "bin"
    programs.mkdir()
    for name, lines in answers.items():
        (programs / name).write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines).format(script) + "\nEND\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    failed = _write_scripts(trials, folder, None, {})
    assert {trial.seed: error for trial, error in failed.items()} == {
        3: "interrupted by SIGTERM", 4: "its task ended as TIMEOUT",
    }  # fmt: skip
    notes = capfd.readouterr().err
    assert "in the queue (PENDING): ga/seed-0" in notes
    assert "in the queue (REQUEUE_HOLD): ga/seed-1" in notes
    assert "interrupted (PREEMPTED), and to be submitted again: ga/seed-2" in notes
    assert script.exists()  # the queue has tasks of it
    assert options(folder / "slurm-2.sh")["array"] == "0-3"
    assert [trial in (folder / "slurm-2.sh").read_text() for trial in ("ga/seed-1", "ga/seed-2")] == [False, True]
    for name in answers:
        (programs / name).write_text("#!/bin/sh\nexit 1\n")  # no accounting
    assert len(_write_scripts(trials, folder, None, {})) == 4
    assert sorted(path.name for path in folder.glob("*.sh")) == ["slurm-1.sh"]


def test_what_runs_now_and_what_failed(tmp_path):
    trial = Trial("ga", 0)
    assert not is_running(trial, tmp_path)
    with RunFolder(tmp_path / trial.name):
        assert is_running(trial, tmp_path)
    assert not is_running(trial, tmp_path)
    log = log_file(trial.name, tmp_path)
    assert last_error(log) == ""
    log.parent.mkdir()
    log.write_text("error: one\nnote\nerror: two\nhint\n")
    assert last_error(log) == "two"
    assert last_error(log, log.stat().st_size) == ""


@pytest.mark.slow
def test_the_same_command_writes_collects_and_writes_what_is_left(call, studio, tmp_path, installed):
    installed.add("encore-snag", SNAG)
    out = tmp_path / "b"
    command = flags(studio, out, "--methods", "graddiff,snag", "--seeds", "1", "-o", "graddiff.steps=2", "--json")
    command += ["--launcher", "slurm", "--resource", "time=10:00"]
    done = call(*command)
    assert (done.code, done.out) == (0, ""), done.err
    script = out / "slurm-1.sh"
    assert f"submit: sbatch {script}" in done.err
    assert "time=10:00" in script.read_text()
    assert sbatch(script, PYTHONPATH=str(installed.folder)) == [0, 1]
    done = call(*command)
    assert done.code == 1
    assert "1 of 2 trials failed, the first is snag/seed-0" in done.err
    assert [line["label"] for line in json.loads(done.out)["methods"]] == ["graddiff (steps=2)"]
    assert options(script)["array"] == "0-0"
    assert "graddiff" not in script.read_text()
