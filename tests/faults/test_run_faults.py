"""Faults of a run, on real processes: kills, signals, limits, damage; see the rows of the fault table (1-7, 17-20)."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Done, Installer

Call = Callable[..., Done]

# A process that has torch and Encore loaded, and forks a child a job: a run costs a second less that way, and there
# are many. A job is a line of JSON; the answer its exit code and how many calls that write it made.
ZYGOTE = """
import builtins, contextlib, errno, importlib, io, json, os, signal, sys
import torch
torch.set_num_threads(1)
from encore.cli import app
import encore.backends.musicgen, encore.methods.graddiff, encore.unlearn.run

def arm(kill_at):
    counted = 0
    def guarded(real):
        def call(*arguments, **more):
            nonlocal counted
            counted += 1
            if counted == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)
        return call
    # Not fsync: a kill there leaves on the disk what one at the next of these leaves.
    for name in ("replace", "mkdir", "unlink", "rmdir", "truncate"):
        setattr(os, name, guarded(getattr(os, name)))
    real_open = builtins.open
    writing = guarded(real_open)
    def opened(file, mode="r", *arguments, **more):
        return (writing if mode.strip("bt") != "r" else real_open)(file, mode, *arguments, **more)
    builtins.open = opened
    return lambda: counted

def fail(fail_at):
    # The n-th call below the run's folder that reads or writes fails, as a disk that breaks lets it.
    counted = 0
    own = os.path.join(os.getcwd(), "run")
    def due(name, path):
        nonlocal counted
        if not os.path.abspath(os.fsdecode(path)).startswith(own):
            return False
        counted += 1
        return counted == fail_at
    def path_of(handle):
        return os.readlink(f"/proc/self/fd/{handle}")
    def guarded(name, real):
        def call(*arguments, **more):
            # Of a file that is open the system knows no name: nothing but the number is told.
            if isinstance(arguments[0], (str, bytes, os.PathLike)) and due(name, arguments[0]):
                raise OSError(errno.EIO, os.strerror(errno.EIO), arguments[0])
            if isinstance(arguments[0], int) and due(name, path_of(arguments[0])):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*arguments, **more)
        return call
    for name in ("replace", "mkdir", "unlink", "rmdir", "truncate", "fsync", "stat", "listdir", "scandir", "open"):
        setattr(os, name, guarded(name, getattr(os, name)))
    class Broken(io.FileIO):
        def write(self, data):
            if due("write", self.name):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().write(data)
        def readinto(self, buffer):
            if due("read", self.name):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().readinto(buffer)
        def readall(self):
            if due("read", self.name):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().readall()
    real_open = builtins.open
    def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **more):
        if not isinstance(file, (str, os.PathLike)) or not os.path.abspath(file).startswith(own) or more:
            return real_open(file, mode, buffering, encoding, errors, newline, **more)
        if due("open", file):
            raise OSError(errno.EIO, os.strerror(errno.EIO), os.fspath(file))
        raw = Broken(file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        made = io.BufferedReader(raw) if "r" in mode and "+" not in mode else io.BufferedWriter(raw)
        return made if "b" in mode else io.TextIOWrapper(made, encoding or "utf-8", errors, newline)
    builtins.open = io.open = opened
    return lambda: counted

for line in sys.stdin:
    job = json.loads(line)
    told, telling = os.pipe()
    child = os.fork()
    if not child:
        os.chdir(job["cwd"])
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1):
            os.dup2(null, number)
        log = os.open("stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 2)
        for name, value in job.get("limits", {}).items():
            import resource
            resource.setrlimit(getattr(resource, name), (value, value))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, app._stop)
        count = fail(job["fail_at"]) if "fail_at" in job else arm(job.get("kill_at"))
        code = app.run(job.get("instead") or job["arguments"])
        os.write(telling, b"%d" % count())
        if job.get("preload"):
            with open("modules", "w") as file:
                file.write("\\n".join(sys.modules))
        os._exit(code)
    os.close(telling)
    print(json.dumps({"pid": child}), flush=True)
    _, status = os.waitpid(child, 0)
    calls = int(os.read(told, 99) or 0)
    os.close(told)
    if job.get("preload"):  # what it imported need not be imported in every fork: half of what a short run takes
        with open(os.path.join(job["cwd"], "modules")) as file:
            for name in file.read().split():
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
    print(json.dumps({"code": os.waitstatus_to_exitcode(status), "calls": calls}), flush=True)
"""
FLAGS = ["--method", "graddiff", "--steps", "2"]
FLAGS += [word for option in ("checkpoint_seconds=0", "eval_every=2", "stop=never") for word in ("-o", option)]


class Zygote:
    """Runs `encore` in forked children of a warm process."""

    def __init__(self, studio: Path) -> None:
        environment = {**os.environ, "ENCORE_CACHE": str(studio / "cache"), "OMP_NUM_THREADS": "1"}
        self.studio = studio
        self._process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def arguments(self, *more: str) -> list[str]:
        music = self.studio / "music"
        lists = [f"--{name}" for name in ("tracks", "retain", "holdout")]
        files = [str(music / f"{name}.txt") for name in ("forget", "retain", "holdout")]
        flat = [word for pair in zip(lists, files, strict=True) for word in pair]
        return ["forget", *flat, "--model", str(self.studio / "model"), *FLAGS, "--out", "run", *more]

    def start(self, cwd: Path, *more: str, **job: Any) -> int:
        """Begin a job; returns the child's id. `finish` must follow."""
        assert self._process.stdin
        cwd.mkdir(exist_ok=True)
        self._process.stdin.write(json.dumps({"cwd": str(cwd), "arguments": self.arguments(*more), **job}) + "\n")
        self._process.stdin.flush()
        return self._answer()["pid"]

    def finish(self) -> tuple[int, int]:
        """The exit code of what was started (negative: the signal that killed it), and its calls that write."""
        answer = self._answer()
        return answer["code"], answer["calls"]

    def run(self, cwd: Path, *more: str, **job: Any) -> tuple[int, int]:
        self.start(cwd, *more, **job)
        return self.finish()

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())


@pytest.fixture(scope="module")
def zygote(_studio: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    made = Zygote(_studio)
    folder = tmp_path_factory.mktemp("preload")
    made.run(folder, preload=True)
    made.run(folder, instead=["eval", "run", "--metrics", "nll"], preload=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def straight(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """The weights of a run that nothing disturbs, and how many calls that write it makes."""
    folder = tmp_path_factory.mktemp("straight")
    zygote.run(folder, "--dry-run")  # the cache is filled: what follows does the same in every run
    code, calls = zygote.run(folder)
    assert code == 0, (folder / "stderr").read_text()
    return weights(folder), calls


def weights(folder: Path) -> bytes:
    return (folder / "run/model/model.safetensors").read_bytes()


def finished(zygote: Zygote, folder: Path) -> None:
    """Go on with whatever a kill left, as a user would."""
    run = folder / "run"
    if (run / "run.json").exists():
        return
    resume = ["--resume"] if (run / "request.json").exists() else []
    code, _ = zygote.run(folder, *resume)
    assert code == 0, (folder / "stderr").read_text()


def killed_at(zygote: Zygote, folder: Path, number: int, straight: tuple[bytes, int]) -> None:
    code, _ = zygote.run(folder, kill_at=number)
    assert code == -signal.SIGKILL
    finished(zygote, folder)
    run = folder / "run"
    assert weights(folder) == straight[0]
    json.loads((run / "run.json").read_text())
    assert not [path for path in run.rglob("*") if path.name.startswith(".staging")]
    for line in (run / "log.jsonl").read_text().splitlines():
        json.loads(line)


def test_kill_9_at_some_write_points_and_resume(zygote: Zygote, straight: tuple[bytes, int], tmp_path: Path) -> None:
    calls = straight[1]
    assert calls > 40
    for number in (2, calls // 2, calls - 12):
        killed_at(zygote, tmp_path / str(number), number, straight)


@pytest.mark.slow
@pytest.mark.timeout(1500)  # some fifty runs and as many resumed ones
def test_kill_9_at_many_write_points_and_resume(zygote: Zygote, straight: tuple[bytes, int], tmp_path: Path) -> None:
    """At a random half of some ninety: each place in the code comes by several times."""
    for number in random.Random(0).sample(range(1, straight[1] + 1), straight[1] // 2):
        killed_at(zygote, tmp_path / "one", number, straight)
        shutil.rmtree(tmp_path / "one")


# ----------------------------------------------------------------------------------------- C11: killed at the very end


def test_case_C11_a_run_killed_after_run_json_is_cleaned_up_and_resumed_as_complete(
    zygote: Zygote, straight: tuple[bytes, int], tmp_path: Path
) -> None:
    """At every fourth write point from `run.json` on, found from the end: what is left there is the checkpoints."""
    run, left = tmp_path / "run", 0
    for number in range(straight[1] - 1, 0, -4):
        assert zygote.run(tmp_path, kill_at=number)[0] == -signal.SIGKILL
        if not (run / "run.json").exists():
            break
        left += (run / "checkpoints").exists()
        written = (run / "run.json").read_bytes()
        code, _ = zygote.run(tmp_path, "--resume")
        told = (tmp_path / "stderr").read_text()
        assert (code, "nothing to do" in told) == (0, True), told
        assert not (run / "checkpoints").exists()
        assert not list(run.glob(".staging*"))
        assert (run / "run.json").read_bytes() == written
        if left == 1:
            code, _ = zygote.run(tmp_path, "--resume", "-o", "lr=0.1")
            assert (code, "lr" in (tmp_path / "stderr").read_text()) == (2, True)
        shutil.rmtree(run)
    assert left > 1


def test_case_C11_eval_cleans_up_too(zygote: Zygote, straight: tuple[bytes, int], tmp_path: Path) -> None:
    assert zygote.run(tmp_path, kill_at=straight[1] - 8)[0] == -signal.SIGKILL
    assert (tmp_path / "run/run.json").exists()
    assert (tmp_path / "run/checkpoints").exists()
    assert zygote.run(tmp_path, instead=["eval", "run", "--metrics", "nll"])[0] == 0
    assert not (tmp_path / "run/checkpoints").exists()


# ----------------------------------------------------------------------------------------------- C13: a disk that fails


def broken_at(zygote: Zygote, folder: Path, number: int, straight: tuple[bytes, int]) -> bool:
    """The n-th call on the run's own files fails: exit 1, and a sentence with a path; or nobody needed the call."""
    code, _ = zygote.run(folder, fail_at=number)
    told = (folder / "stderr").read_text()
    if code == 0:
        assert weights(folder) == straight[0]
        return False
    assert code in (1, 3), (number, told)
    assert told.count("error:") == 1, told
    assert "not expected" not in told, (number, told)
    assert "run" in told.partition("error:")[2].partition("hint:")[0], (number, told)
    return True


def test_case_C13_an_io_error_at_some_calls_is_a_sentence_with_the_path(
    zygote: Zygote, straight: tuple[bytes, int], tmp_path: Path
) -> None:
    calls = zygote.run(tmp_path / "counted", fail_at=0)[1]
    assert calls > 150
    failed = 0
    for number in (3, 20, calls // 2):
        failed += broken_at(zygote, tmp_path / str(number), number, straight)
        finished(zygote, tmp_path / str(number))
        assert weights(tmp_path / str(number)) == straight[0]
    assert failed > 1


STRIDE = 9  # of some 240 calls: the same places of the code come by many times


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_case_C13_an_io_error_at_many_calls_is_a_sentence_with_the_path(
    zygote: Zygote, straight: tuple[bytes, int], tmp_path: Path
) -> None:
    calls = zygote.run(tmp_path / "counted", fail_at=0)[1]
    failed, tried = 0, range(1, calls + 1, STRIDE)
    for number in tried:
        failed += broken_at(zygote, tmp_path / "one", number, straight)
        shutil.rmtree(tmp_path / "one")
    assert failed > len(tried) // 2


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_case_C13_an_io_error_at_many_calls_of_an_evaluation(
    zygote: Zygote, straight: tuple[bytes, int], tmp_path: Path
) -> None:
    measure = ["eval", "run", "--metrics", "nll"]
    assert zygote.run(tmp_path)[0] == 0
    assert zygote.run(tmp_path, instead=measure)[0] == 0
    calls = zygote.run(tmp_path, instead=measure, fail_at=0)[1]
    for number in range(1, calls + 1, STRIDE):
        code, _ = zygote.run(tmp_path, instead=measure, fail_at=number)
        told = (tmp_path / "stderr").read_text()
        assert code in (0, 1, 3), (number, told)
        assert "not expected" not in told, (number, told)
        assert code == 0 or "run" in told.partition("error:")[2].partition("hint:")[0], (number, told)


def until(happened: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def lines(folder: Path) -> int:
    log = folder / "run/log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_a_checkpoint_and_a_resumed_run_is_the_same(
    zygote: Zygote, tmp_path: Path, number: signal.Signals
) -> None:
    steps = ["--steps", "60", "-o", "checkpoint_seconds=999", "-o", "eval_every=60"]
    child = zygote.start(tmp_path, *steps)
    until(lambda: lines(tmp_path) > 4)
    os.kill(child, number)
    assert zygote.finish()[0] == 128 + number
    told = (tmp_path / "stderr").read_text()
    assert f"stopped by {number.name}" in told
    assert "--resume --out run" in told
    assert "Traceback" not in told
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 1
    assert not (tmp_path / "run/run.json").exists()
    if number != signal.SIGTERM:
        return  # what follows is the same for all
    assert zygote.run(tmp_path, *steps, "--resume")[0] == 4  # complete, and so many steps go past the targets
    assert zygote.run(tmp_path / "straight", *steps)[0] == 4
    assert weights(tmp_path) == weights(tmp_path / "straight")


@pytest.mark.slow
def test_the_installed_command_obeys_sigterm_and_a_second_signal_leaves_at_once(
    zygote: Zygote, studio: Path, tmp_path: Path
) -> None:
    """In a process of its own, whose step takes minutes: the first signal waits for the step, the second does not."""
    slow = """
        import time
        from encore.api import MethodSpec, hookimpl
        from encore.methods.graddiff import GradDiff
        class Slow(GradDiff):
            def forget_loss(self, step, batch):
                open("in-step", "w").close()
                time.sleep(600)
        @hookimpl
        def encore_register_methods():
            return [MethodSpec("slow", "sleeps", "slow_method:Slow", needs={"retain"})]
    """
    site = Installer(tmp_path / "site")
    site.add("slow-method", textwrap.dedent(slow))
    environment = {**os.environ, "PYTHONPATH": str(site.folder)}
    arguments = [*zygote.arguments(), "--method", "slow"]
    process = subprocess.Popen(
        [sys.executable, "-m", "encore", *arguments], env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: Path("in-step").exists())
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=10)
    assert process.returncode == 143, told
    assert not Path("run/run.json").exists()


def test_two_runs_on_one_folder(zygote: Zygote, studio: Path, tmp_path: Path, call: Call) -> None:
    child = zygote.start(tmp_path, "--steps", "5000")
    try:
        until(lambda: lines(tmp_path) > 2)
        for more in ([], ["--resume"]):
            done = call(*zygote.arguments(*more))
            assert done.code == 1
            assert f"in use by process {child}" in done.err
    finally:
        os.kill(child, signal.SIGTERM)
        assert zygote.finish()[0] == 143


@pytest.mark.parametrize("limit", [2_000, 60_000])
def test_a_write_limit_is_one_sentence_and_the_run_can_go_on(
    zygote: Zygote, straight: tuple[bytes, int], tmp_path: Path, limit: int
) -> None:
    """At the request, and at a checkpoint's weights, which safetensors writes and not Python."""
    code, _ = zygote.run(tmp_path, limits={"RLIMIT_FSIZE": limit})
    told = (tmp_path / "stderr").read_text()
    assert (code, "the file would be larger than allowed" in told) == (1, True), told
    assert told.count("error:") == 1
    assert not (tmp_path / "run/run.json").exists()
    finished(zygote, tmp_path)
    assert weights(tmp_path) == straight[0]


def test_a_full_disk_is_seen_before_the_run(
    zygote: Zygote, studio: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    done = call(*zygote.arguments())
    assert done.code == 1
    assert "bytes for the model and its checkpoints, and 1,000 are free" in done.err
    assert not Path("run").exists()


def test_a_damaged_checkpoint_is_told_and_passed_over(
    zygote: Zygote, straight: tuple[bytes, int], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    child = zygote.start(tmp_path, "--steps", "3000", "-o", "eval_every=3000")
    until(lambda: len(list((run / "checkpoints").glob("[0-9]*"))) == 2)
    os.kill(child, signal.SIGTERM)
    assert zygote.finish()[0] == 143
    newest = max((run / "checkpoints").iterdir())
    data = bytearray((newest / "module.safetensors").read_bytes())
    data[-5] ^= 1
    (newest / "module.safetensors").write_bytes(data)
    child = zygote.start(tmp_path, "--steps", "3000", "-o", "eval_every=3000", "--resume")
    before = lines(tmp_path)
    until(lambda: lines(tmp_path) > before + 2)
    os.kill(child, signal.SIGTERM)
    assert zygote.finish()[0] == 143
    assert f"{newest.name} is damaged" in (tmp_path / "stderr").read_text()
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    resumed = [event["step"] for event in events if event.get("event") == "resumed"]
    assert len(resumed) == 1
    assert resumed[0] < int(newest.name) - 1_000_000


@pytest.fixture(scope="module")
def begun(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed soon after it began."""
    folder = tmp_path_factory.mktemp("begun")
    assert zygote.run(folder, kill_at=30)[0] == -signal.SIGKILL
    return folder / "run"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["-o", "lr=0.1"], "options: lr 0.0005 -> 0.1"),
        (["--seed", "3"], "seed: 0 -> 3"),
        (["--method", "ga"], "method: graddiff -> ga"),
        (["--tracks", "RETAIN", "--retain", "HOLDOUT", "--holdout", "FORGET"], "one.wav, two.wav, long.wav no longer"),
        (["--model", "OTHER"], "model: name"),
    ],
)
def test_resume_of_another_run_shows_the_difference(
    zygote: Zygote, begun: Path, studio: Path, call: Call, change: list[str], words: str
) -> None:
    shutil.copytree(studio / "model", "other")
    shutil.copytree(begun, "run")
    places = {name.upper(): str(studio / f"music/{name}.txt") for name in ("forget", "retain", "holdout")}
    kept = Path("run/request.json").read_bytes()
    done = call(*zygote.arguments("--resume", *[(places | {"OTHER": "other"}).get(word, word) for word in change]))
    assert done.code == 2, done.err
    assert words in done.err
    assert Path("run/request.json").read_bytes() == kept


METHODS = """
import torch
from encore.api import EditMethod, MethodSpec, hookimpl
from encore.methods.graddiff import GradDiff
from encore.options import Options

class Poison(EditMethod):
    Options = Options
    def edit(self, session):
        with torch.no_grad():
            next(session.backend.module.parameters()).fill_(float("nan"))

class Trespass(EditMethod):
    Options = Options
    def edit(self, session):
        with torch.no_grad():
            next(session.backend.frozen()["codec"].parameters()).add_(1)

class NotANumber(GradDiff):
    def forget_loss(self, step, batch):
        return super().forget_loss(step, batch) * float("nan")

class Hungry(GradDiff):
    def retain_loss(self, step, batch):
        if len(batch) > 1:
            raise torch.OutOfMemoryError("too much")
        return super().retain_loss(step, batch)

@hookimpl
def encore_register_methods():
    return [MethodSpec("poison", "", "faulty:Poison"), MethodSpec("trespass", "", "faulty:Trespass"),
            MethodSpec("nan", "", "faulty:NotANumber", needs={"retain"}),
            MethodSpec("hungry", "", "faulty:Hungry", needs={"retain"})]
"""


@pytest.mark.parametrize(
    ("method", "code", "words"),
    [
        ("poison", 1, "left non-finite weights"),
        ("trespass", 1, "changed the codec, which must stay as it was"),
        ("nan", 1, "not finite for 5 steps in a row"),
    ],
)
def test_a_faulty_method_fails_and_nothing_passes_for_complete(
    zygote: Zygote, studio: Path, call: Call, installed: Installer, method: str, code: int, words: str
) -> None:
    installed.add("faulty", METHODS)
    arguments = zygote.arguments()[: -len(FLAGS) - 2]
    steps = ["--steps", "9"] if method == "nan" else []
    done = call(*arguments, "--method", method, *steps, "--out", "run")
    assert (done.code, words in done.err) == (code, True), done.err
    assert not Path("run/run.json").exists()
    assert not Path("run/model").exists()


def test_out_of_memory_gives_the_same_model_in_smaller_bites(
    zygote: Zygote, studio: Path, call: Call, installed: Installer
) -> None:
    import torch

    from encore.backends.musicgen import MusicgenBackend

    installed.add("faulty", METHODS)
    assert call(*zygote.arguments("--out", "calm")).code == 0
    assert call(*zygote.arguments("--out", "pressed", "--method", "hungry")).code == 0
    record = json.loads(Path("pressed/run.json").read_text())
    assert record["outcome"]["micro_batch_size"] == 1
    assert '"event": "out of memory"' in Path("pressed/log.jsonl").read_text()
    calm, pressed = (MusicgenBackend.load(f"{name}/model", offline=True).module for name in ("calm", "pressed"))
    for one, other in zip(calm.parameters(), pressed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4)
