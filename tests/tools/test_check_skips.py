from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools.check_skips import unexpected

LOG = """
=========================== short test summary info ============================
SKIPPED [2] tests/gpu/test_linear_grad.py:19: there is no CUDA device
SKIPPED [1] tests/ops/test_linear_grad.py:61: no library, or no amx in this processor
SKIPPED [4] tests/data/test_decode.py:105: could not import 'av': No module named 'av'
FAILED tests/test_api.py::test_one - assert 0
"""


def test_only_a_gpu_and_instruction_sets_may_be_missing():
    assert unexpected(LOG) == ["tests/data/test_decode.py:105: could not import 'av': No module named 'av'"]


def test_pytests_own_output_is_understood(tmp_path: Path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n@pytest.mark.skipif(True, reason='no tool')\ndef test_one(): ...\n\n"
        "@pytest.mark.skipif(True, reason='there is no CUDA device')\ndef test_two(): ...\n"
    )
    run = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", str(tmp_path)]
    log = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path).stdout
    (line,) = unexpected(log)
    assert line.endswith(": no tool")
    (tmp_path / "log").write_text(log)
    check = Path(__file__).resolve().parents[2] / "tools/check_skips.py"
    done = subprocess.run([sys.executable, check, tmp_path / "log"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no tool" in done.stdout
