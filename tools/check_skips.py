"""Fail where a test was skipped for a reason that CI has no excuse for.

    python tools/check_skips.py LOG...

Reads the lines `SKIPPED [2] tests/…py:61: reason` of pytest's summary (`-ra`). What CI can't have is a short list: a
GPU, nvcc, and instruction sets that its processor may lack. Everything else is installed there, so that every optional
path runs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ALLOWED = {
    r"there is no CUDA device": "CI has no GPU",
    r"needs compute capability .*|needs two devices": "CI has no GPU",
    r"there is no nvcc": "it comes with no package that CI can install",
    r"no library, or no (amx|avx512|avx2) in this processor": "processors differ",
}
SKIPPED = re.compile(r"^SKIPPED \[\d+\] (?P<where>\S+): (?P<reason>.*)$", re.MULTILINE)


def unexpected(log: str) -> list[str]:
    """`where: reason` of each skip in pytest's output that is not on the list."""
    found = ((match["where"], match["reason"].strip()) for match in SKIPPED.finditer(log))
    return [f"{where}: {why}" for where, why in found if not any(re.fullmatch(one, why) for one in ALLOWED)]


def main(logs: list[str]) -> int:
    """Print what was skipped without an excuse; 1 where there is any."""
    wrong = [line for log in logs for line in unexpected(Path(log).read_text(errors="replace"))]
    for line in wrong:
        print(f"skipped, and CI has no excuse for it: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
