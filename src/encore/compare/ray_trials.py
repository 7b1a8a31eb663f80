"""Runs trials as tasks of a Ray cluster (extra `ray`).

A task starts the process that the local scheduler would start, on the node that Ray places it on. Logs and resuming are
the same, as long as all nodes share the folder of the bench.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from encore.compare.scheduler import POLL, Start, log_file, start_process, trial_command
from encore.errors import EncoreError, MissingExtraError, UsageError, one_line

_RAY_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU"}  # of a request -> of a node
_TYPE = "accelerator_type"
# Linux ends the process (SIGKILL) when the worker that started it dies, and so frees the folder for the next try.
_END_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


@contextmanager
def ray_cluster(
    plan: Path, *, resources: Mapping[str, str], device: str = "auto", note: Callable[[str], None] = lambda text: None
) -> Iterator[Start]:
    """Connect to a Ray cluster; gives the `start` of `encore.compare.scheduler.run_trials`.

    The cluster is that of RAY_ADDRESS or one that runs on this machine. Where there is neither, one is started on this
    machine and stopped at the end. A trial whose worker is lost is started once more.

    Args:
        plan: the bench's `bench.json`, in a folder that all nodes share.
        resources: of a trial, by name: num_cpus, num_gpus, memory, accelerator_type or a custom resource. Default: one
            CPU, and one GPU if the cluster has GPUs and `device` is not "cpu".
        device: the bench's device.
        note: receives a sentence for the user.

    Raises:
        MissingExtraError: ray is not installed.
        UsageError: a resource is invalid, or the cluster that was started here lacks it. While trials run: a node does
            not see the plan.
        EncoreError: there is no cluster at RAY_ADDRESS.
    """
    request = checked(resources)
    import ray

    connected, local = ray.is_initialized(), False
    if not connected:
        local = _connect(ray)
    try:
        if device != "cpu" and "num_gpus" not in request and "GPU" in ray.cluster_resources():
            request["num_gpus"] = 1.0
        _check_capacity(ray, request, local, note)
        options = {name: request.pop(name) for name in list(request) if name in (*_RAY_NAMES, "memory", _TYPE)}
        task = ray.remote(run_trial).options(**options, resources=request, max_retries=0)
        yield partial(_Task, ray, task, str(plan), plan.read_bytes(), note)
    finally:
        if not connected:
            ray.shutdown()


def checked(resources: Mapping[str, str]) -> dict[str, Any]:
    """The resources of a trial, as Ray takes them.

    Raises:
        MissingExtraError: ray is not installed.
        UsageError: an amount is invalid.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("--launcher ray needs ray, which is not installed", 'pip install "encore-music[ray]"')
    request: dict[str, Any] = {name: value if name == _TYPE else _amount(value) for name, value in resources.items()}
    for name, amount in request.items():
        if amount is None:
            raise UsageError(
                f"the resource {name}={resources[name]} is not an amount that Ray accepts: a whole number, or below 1",
                "as in: --resource num_cpus=4, --resource num_gpus=0.5",
            )
    return request


def _amount(text: str) -> float | None:
    try:
        amount = float(text)
    except ValueError:
        return None
    return amount if 0 <= amount <= 1 or (amount > 1 and amount.is_integer()) else None


def _connect(ray: Any) -> bool:
    """Connect to the cluster that is there; else start one on this machine, and return True."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():  # Ray itself tries a dead address for more than ten minutes
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise EncoreError(
                f"there is no Ray cluster at {address} (RAY_ADDRESS): {error}",
                "start it, or unset RAY_ADDRESS: trials then run on this machine",
            ) from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address="auto", **quiet)
        return False
    except ConnectionError as error:
        if address:
            raise EncoreError(f"can't connect to the Ray cluster {address}: {one_line(error)}") from error
    ray.init(include_dashboard=False, **quiet)
    return True


def _check_capacity(ray: Any, request: Mapping[str, Any], local: bool, note: Callable[[str], None]) -> None:
    """Refuse a request that no node can ever fulfil; a cluster of more nodes may still grow, so there it is noted."""
    amounts = {_RAY_NAMES.get(name, name): value for name, value in request.items() if name != _TYPE}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0) >= amount for name, amount in amounts.items()) for node in nodes):
        return
    wanted = ", ".join(f"{name}={value:g}" for name, value in request.items() if name != _TYPE)
    message = f"no node of the Ray cluster has {wanted}"
    if local:
        raise UsageError(message, "ask for less with --resource, or connect to another cluster with RAY_ADDRESS")
    note(f"{message}; trials wait until one joins")


class _Task:
    """A trial as a Ray task; see `encore.compare.scheduler.Running`."""

    def __init__(
        self, ray: Any, task: Any, plan: str, contents: bytes, note: Callable[[str], None], name: str, out: Path
    ) -> None:
        self._ray, self._note, self._name, self._log = ray, note, name, log_file(name, out)
        self._submit = partial(task.remote, name, plan, contents)
        self._reference = self._submit()
        self._retried = False

    def poll(self) -> int | None:
        finished, _ = self._ray.wait([self._reference], timeout=0)
        if not finished:
            return None
        try:
            result = self._ray.get(self._reference)
        except self._ray.exceptions.RayTaskError as error:
            return self._failed(f"the trial could not be started: {' '.join(str(error.cause).split())}")
        except self._ray.exceptions.RayError as error:
            lost = f"the Ray worker was lost ({type(error).__name__})"
            if self._retried:
                return self._failed(f"{lost} twice")
            self._retried = True
            self._note(f"{self._name}: {lost}; the trial is started again")
            self._reference = self._submit()
            return None
        if isinstance(result, str):
            raise UsageError(result, "give a folder on a file system that all nodes of the cluster share")
        return int(result)

    def send_signal(self, sig: int, /) -> None:
        self._ray.cancel(self._reference)  # `run_trial` passes it on as SIGTERM

    def wait(self) -> None:
        self._ray.wait([self._reference])

    def _failed(self, message: str) -> int:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"error: {message}\n")
        return 1


def run_trial(name: str, plan: str, contents: bytes) -> int | str:
    """Run a trial on this node, and return its exit code; or what is wrong with the node."""
    out = Path(plan).parent
    if not (Path(plan).is_file() and Path(plan).read_bytes() == contents):
        import ray

        return f"the node {ray.util.get_node_ip_address()} does not see the bench in {out}"
    command = trial_command(name, out)
    if sys.platform == "linux":
        command = [sys.executable, "-c", _END_WITH_PARENT, *command[1:]]
    process = start_process(command, log_file(name, out), os.environ)
    try:
        while process.poll() is None:
            time.sleep(POLL)  # `ray.cancel` raises KeyboardInterrupt here
    finally:
        process.terminate()
        process.wait()
    return process.returncode
