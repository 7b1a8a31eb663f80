from __future__ import annotations

from pathlib import Path

import pytest
from tests.report.made_run import write_run

from encore.evidence.pack import pack
from encore.report import svg


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn in the tests of the report; here they would only take time."""
    monkeypatch.setattr(svg, "can_draw", lambda: False)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A measured run, its figures made up."""
    return write_run(tmp_path / "made")


@pytest.fixture
def bundle(made: Path) -> Path:
    return pack(made)
