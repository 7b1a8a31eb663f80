"""Several processes of one run, as `torchrun` starts them."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Imports once for all tests, and forks the processes of each run, with the environment that torchrun gives them. A run
# is a line of JSON; the answer is the exit codes. (To import peft, which loads bitsandbytes, takes as long as torch.)
ZYGOTE = """
import contextlib, json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import av, encore.cli.forget, encore.embedders.latents, encore.methods.npo, encore.relearning, encore.unlearn.run
import encore.backends.musicgen, torch.distributed.fsdp, transformers.models.encodec.modeling_encodec
import transformers.models.musicgen.modeling_musicgen, transformers.models.t5.modeling_t5
from encore import distributed
with contextlib.suppress(ImportError):
    import peft

for line in sys.stdin:
    run = json.loads(line)
    out, count, children = Path(run["out"]), run["count"], {}
    for rank in range(count):
        child = os.fork()
        if not child:
            null = os.open(os.devnull, os.O_RDWR)
            log = os.open(out / f"log.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
            for number, file in enumerate((null, log, log)):
                os.dup2(file, number)
            os.chdir(run["cwd"])
            os.environ.clear()
            os.environ |= run["environment"] | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            sys.argv = ["script", run["out"], str(count), *run["arguments"]]
            exec(compile(run["code"], "script", "exec"))
            sys.exit()
        children[child] = rank
    codes = {}
    while len(codes) < count:
        child, status = os.wait()
        codes[children[child]] = os.waitstatus_to_exitcode(status)
    print(json.dumps([codes[rank] for rank in range(count)]), flush=True)
"""


@functools.cache
def zygote() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    atexit.register(process.communicate)
    return process


def launch(code: str, count: int, out: Path, *arguments: object, timeout: float = 240) -> list[tuple[int, str]]:
    """Run Python code in `count` processes; the exit code and the output of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
    run = {
        "code": textwrap.dedent(code), "count": count, "out": str(out), "arguments": [*map(str, arguments)],
        "cwd": str(Path.cwd()), "environment": environment,
    }  # fmt: skip
    process = zygote()
    assert process.stdin
    assert process.stdout
    timer = threading.Timer(timeout, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    answer = ""
    try:
        process.stdin.write(json.dumps(run) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    finally:
        timer.cancel()
        if not answer:  # out of time, or interrupted: the next run gets another process
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            zygote.cache_clear()
    assert answer, f"no answer within {timeout:g} s"
    return [(code, (out / f"log.{rank}").read_text()) for rank, code in enumerate(json.loads(answer))]


def passed(results: list[tuple[int, str]]) -> None:
    assert [code for code, _ in results] == [0] * len(results), "\n".join(error for _, error in results)
