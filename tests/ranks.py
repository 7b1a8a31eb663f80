"""Several processes of one run, as `torchrun` starts them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Imports once, and forks the processes of the run, each with the environment that torchrun gives it.
PRELUDE = """
import os, sys
from pathlib import Path
import torch
import encore.unlearn.engine, encore.backends.musicgen
from encore import distributed
torch.set_num_threads(1)
out, count = Path(sys.argv[1]), int(sys.argv[2])
children = {}
for rank in range(count):
    child = os.fork()
    if not child:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.dup2(os.open(out / f"stderr.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        break
    children[child] = rank
else:
    codes = {}
    while len(codes) < count:
        child, status = os.wait()
        codes[children[child]] = os.waitstatus_to_exitcode(status)
    print([codes[rank] for rank in range(count)])
    os._exit(0)
"""


def launch(code: str, count: int, out: Path, *arguments: object, timeout: float = 240) -> list[tuple[int, str]]:
    """Run Python code in `count` processes; the exit code and stderr of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = out / "script.py"
    script.write_text(PRELUDE + textwrap.dedent(code))
    process = subprocess.run(
        [sys.executable, str(script), str(out), str(count), *map(str, arguments)], capture_output=True, text=True,
        env={**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)},
        timeout=timeout, check=False,
    )  # fmt: skip
    assert process.stdout, process.stderr
    codes = json.loads(process.stdout.splitlines()[-1])
    return [(code, (out / f"stderr.{rank}").read_text()) for rank, code in enumerate(codes)]


def passed(results: list[tuple[int, str]]) -> None:
    assert [code for code, _ in results] == [0] * len(results), "\n".join(error for _, error in results)
