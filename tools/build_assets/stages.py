"""What both builds share: a clock for their stages, and Python processes for their trainings."""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
# Each step frees and takes the same large buffers; kept in the heap they cost no page faults (half of the time on some
# virtual machines). Read by glibc, unknown elsewhere.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30), "MALLOC_TOP_PAD_": str(256 << 20)}


def versions(*more: str) -> dict[str, str]:
    """Versions of the packages that results depend on, and of `more`."""
    packages = ("torch", "transformers", "tokenizers", "numpy", "scipy", "soundfile", *more)
    return {p: importlib.metadata.version(p) for p in packages}


class Clock:
    """Minutes a stage, remembered in the work folder so that a resumed build still reports them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.minutes: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, stage: str, run: Callable[[], T]) -> T:
        print(f"{stage} …", file=sys.stderr, flush=True)
        began = time.time()
        result = run()
        spent = (time.time() - began) / 60
        self.minutes[stage] = round(max(spent, self.minutes.get(stage, 0.0)), 2)
        self.path.write_text(json.dumps(self.minutes))
        return result


def python(commands: list[list[str]], at_once: int = 2) -> None:
    """Runs `python -m` commands, each in a process of its own, `at_once` at a time.

    Raises:
        SystemExit: one failed; the others are ended.
    """
    waiting, running = list(commands), list[subprocess.Popen[bytes]]()
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(subprocess.Popen([sys.executable, "-m", *waiting.pop(0)], env=os.environ | MALLOC))
        for process in [p for p in running if p.poll() is not None]:
            running.remove(process)
            if process.returncode:
                for other in running:
                    other.terminate()
                raise SystemExit(f"training failed with exit code {process.returncode}")
        time.sleep(0.5)
