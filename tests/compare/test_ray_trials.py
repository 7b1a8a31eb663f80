"""Trials as Ray tasks: the protocol with a stand-in of Ray, then real trials on a cluster of two workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from tests.cli.test_bench import SNAG, flags, until

from encore.compare.plan import PLAN, Plan, Trial, write_plan
from encore.compare.ray_trials import _check_capacity, _connect, _Task, checked, ray_cluster, run_trial
from encore.compare.scheduler import log_file, run_trials
from encore.errors import EncoreError, MissingExtraError, UsageError

CELL = Trial("ga", 0)


class RayError(Exception):
    pass


class RayTaskError(RayError):
    cause = PermissionError("no\naccess")


class FakeRay:
    """Ray whose tasks end at once, with the given results in turn."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, *results: object) -> None:
        self.results, self.submitted = list(results), 0

    def remote(self, *_arguments: object) -> int:
        self.submitted += 1
        return self.submitted - 1

    def wait(self, references, timeout=None):
        return references, []

    def cancel(self, reference):
        """The task has ended."""

    def get(self, reference):
        result = self.results[reference]
        if isinstance(result, Exception):
            raise result
        return result


@pytest.mark.parametrize(
    ("results", "error", "submitted"),
    [
        ([0], None, 1),
        ([3], "exit code 3; see", 1),
        ([-9], "the process was ended by SIGKILL", 1),
        ([RayError(), 0], None, 2),
        ([RayError(), RayError()], "the Ray worker was lost (RayError) twice", 2),
        ([RayTaskError()], "the trial could not be started: no access", 1),
    ],
)
def test_outcomes_of_a_task(tmp_path, results, error, submitted):
    ray, notes = FakeRay(*results), []

    def start(name, out):
        return _Task(ray, ray, str(out / PLAN), b"", notes.append, name, out)

    log = log_file(CELL.name, tmp_path)
    log.parent.mkdir()
    log.write_text("error: of an earlier process\n")
    failed = run_trials([CELL], tmp_path, start=start)
    assert (error is None and not failed) or failed[CELL].startswith(error)
    assert ray.submitted == submitted
    assert len(notes) == submitted - 1


def test_a_node_without_the_folder_ends_the_bench(tmp_path):
    ray = FakeRay("the node 10.0.0.2 does not see the bench in /b")
    with pytest.raises(UsageError, match=r"10\.0\.0\.2 does not see") as caught:
        run_trials([CELL], tmp_path, start=lambda name, out: _Task(ray, ray, "", b"", print, name, out))
    assert "share" in caught.value.hint


def test_requests_are_checked():
    assert checked({"num_cpus": "2", "num_gpus": "0.5", "accelerator_type": "H200", "fast_disk": "1"}) == {
        "num_cpus": 2.0, "num_gpus": 0.5, "accelerator_type": "H200", "fast_disk": 1.0
    }  # fmt: skip
    for value in ("many", "1.5", "-1", "nan", "inf"):
        with pytest.raises(UsageError, match=f"num_cpus={value} is not an amount"):
            checked({"num_cpus": value})
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]
    ray, notes = SimpleNamespace(nodes=lambda: nodes), []
    _check_capacity(ray, {"num_cpus": 4.0, "accelerator_type": "H200"}, True, notes.append)
    assert not notes
    _check_capacity(ray, {"num_cpus": 4.0, "num_gpus": 1.0}, False, notes.append)
    assert notes == ["no node of the Ray cluster has num_cpus=4, num_gpus=1; trials wait until one joins"]
    with pytest.raises(UsageError, match="no node of the Ray cluster has num_cpus=5"):
        _check_capacity(ray, {"num_cpus": 5.0}, True, notes.append)


def test_an_address_without_a_cluster_starts_none(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(EncoreError, match=f"no Ray cluster at {address}"):
        _connect(SimpleNamespace())


def test_ray_is_an_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught, ray_cluster(tmp_path / PLAN, resources={}):
        pass
    assert "encore-music[ray]" in caught.value.hint


def test_a_trial_runs_as_a_process_with_its_log(tmp_path):
    """The plan does not name the trial, so that the process ends before it opens a model."""
    write_plan(Plan(methods={"ga": ()}, seeds=(0,)), tmp_path)
    contents = (tmp_path / PLAN).read_bytes()
    assert run_trial("ga/seed-7", str(tmp_path / PLAN), contents) == 2
    assert "no trial 'ga/seed-7'" in log_file("ga/seed-7", tmp_path).read_text()


# ------------------------------------------------------------------------------------------------- a cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of two workers with one CPU each, and a head without; its address."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    site = tmp_path_factory.mktemp("site")
    (site / "encore_snag.py").write_text(SNAG)
    info = site / "encore_snag-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: encore-snag\nVersion: 1.0\n\nReadme\n")
    (info / "entry_points.txt").write_text("[encore]\nencore-snag = encore_snag\n")
    with pytest.MonkeyPatch.context() as patch:  # workers inherit the environment of their node
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), *sys.path]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            made.add_node(num_cpus=1)
        made.wait_for_nodes()
        patch.setenv("RAY_ADDRESS", made.address)
        yield made.address
        made.shutdown()


def bench(studio: Path, out: Path, *more: object) -> list[str]:
    return [sys.executable, "-m", "encore", *flags(studio, out, "--launcher", "ray", *more)]


@pytest.mark.slow
def test_a_bench_on_two_workers_with_a_method_that_breaks(cluster, studio, tmp_path):
    out = tmp_path / "b"
    command = bench(studio, out, "--methods", "graddiff,snag", "--seeds", "1", "-o", "graddiff.steps=2", "--json")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "graddiff/seed-0: queued" in done.stderr
    assert "1 of 2 trials failed, the first is snag/seed-0" in done.stderr
    assert "stumbled" in done.stderr
    assert [line["label"] for line in json.loads(done.stdout)["methods"]] == ["graddiff (steps=2)"]
    assert list(json.loads(done.stdout)["failed"]) == ["snag/seed-0"]
    assert {path.name for path in (out / "logs").iterdir()} == {"graddiff-seed-0.log", "snag-seed-0.log"}


@pytest.mark.slow
def test_the_trial_of_a_lost_worker_is_resumed_and_an_interrupt_stops_all(cluster, studio, tmp_path):
    out = tmp_path / "b"
    command = bench(studio, out, "--methods", "graddiff", "--seeds", "1", "-o", "graddiff.steps=4000")
    command += ["-o", "graddiff.eval_every=4000", "-o", "graddiff.checkpoint_seconds=1"]
    run = out / "graddiff/seed-0"
    log = run / "log.jsonl"

    def steps() -> int:
        return log.read_text().count('"lr"') if log.exists() else 0

    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        until(lambda: any((run / "checkpoints").glob("[!.]*")) and steps() > 3)
        (trial,) = [
            p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"][-2:] == ["--trial", "graddiff/seed-0"]
        ]
        trial.parent().kill()
        trial.wait(5)  # it does not outlive its worker
        before = steps()
        until(lambda: steps() > before + 3)
        assert '"resumed"' in log.read_text()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C
        _, text = process.communicate(timeout=60)
    assert process.returncode == 130, text
    assert "graddiff/seed-0: the Ray worker was lost (WorkerCrashedError); the trial is started again" in text
    assert not (run / ".owner").exists()  # no process works on it
    assert not (run / "run.json").exists()
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["event"] == "checkpoint"  # written when the signal came


@pytest.mark.slow
def test_a_folder_that_nodes_do_not_share_is_named(cluster, studio, tmp_path):
    write_plan(Plan(methods={"graddiff": ()}, seeds=(0,)), tmp_path)
    with ray_cluster(tmp_path / PLAN, resources={"num_cpus": "1"}) as start:
        (tmp_path / PLAN).write_text("{}")  # what another node might have there
        with pytest.raises(UsageError, match=f"does not see the bench in {tmp_path}"):
            run_trials([Trial("graddiff", 0)], tmp_path, start=start, jobs=2)
    assert not (tmp_path / "logs").exists()
