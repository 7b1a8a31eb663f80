"""The CUDA kernels, run on the CPU by the emulator beside this file: no GPU is needed, and only speed is not seen.

The program is csrc/cuda/selftest.cu, the same that runs on a GPU, with its own float64 reference.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CUDA = HERE.parents[1] / "csrc" / "cuda"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
# -Wclobbered warns of getcontext, which returns twice only to those who jump back to it.
FLAGS = (
    "-std=c++20 -O2 -U_FORTIFY_SOURCE -fno-strict-aliasing -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-clobbered"
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")]


def compile_source(source: Path, folder: Path) -> str:
    out = str(folder / f"{source.stem}.o")
    command = [COMPILER, *FLAGS.split(), "-DENCORE_EMULATED", f"-I{HERE / 'emulate'}", "-x", "c++", "-c", source]
    done = subprocess.run([*command, "-o", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def selftest(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("emulated")
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda source: compile_source(source, folder), sorted(CUDA.glob("*.cu"))))
    subprocess.run([COMPILER, "-o", folder / "selftest", *objects], check=True)
    return folder / "selftest"


def run(selftest: Path, kernel: str, arch: int, processors: int) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ENCORE_ARCH": str(arch), "ENCORE_PROCESSORS": str(processors)}
    command = [selftest, "--quick", "--kernel", kernel]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.parametrize(
    ("kernel", "arch", "processors"),
    [
        ("simt", 75, 4),
        ("sm80", 80, 4),  # whole tiles, then a tail that workers share
        ("sm80", 100, 23),  # fewer tiles than processors: every tile is shared
        ("sm90-single", 90, 7),
        ("sm90", 90, 8),  # clusters of two
    ],
)
def test_kernel_against_float64(selftest, kernel, arch, processors):
    done = run(selftest, kernel, arch, processors)
    assert done.returncode == 0, done.stdout + done.stderr
    right = re.search(rf"^{kernel} +(\d+) right, 0 wrong$", done.stdout, re.MULTILINE)
    assert right, done.stdout
    assert int(right[1]) >= 30


def test_a_kernel_is_not_run_where_the_device_lacks_its_instructions(selftest):
    assert "not run" in run(selftest, "sm90", 100, 4).stdout
    assert "not run" in run(selftest, "sm80", 75, 4).stdout
