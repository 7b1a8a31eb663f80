"""The CPU kernels under address and undefined-behaviour sanitizers, without torch; AVX-512 tiles on any processor."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")
def test_kernels_under_sanitizers(tmp_path):
    sources = [Path(__file__).with_name("linear_grad_driver.cpp"), *(ROOT / "csrc" / "cpu").glob("*.cpp")]
    command = ["c++", "-std=c++20", "-O1", "-g1", "-DENCORE_BASELINE", *SANITIZE, f"-I{ROOT / 'csrc'}"]
    built = subprocess.run(
        [*command, *map(str, sources), "-o", str(tmp_path / "driver")], capture_output=True, text=True, check=False
    )
    if built.returncode != 0 and "sanitize" in built.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([tmp_path / "driver"], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("ok\n", "")
