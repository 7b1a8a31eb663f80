from __future__ import annotations

from pathlib import Path

import pytest
from tests.report.made_run import write_run


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A measured run, its figures made up."""
    return write_run(tmp_path / "made")
