"""The contract as Encore itself runs it, on every family."""

from __future__ import annotations

from pathlib import Path

import pytest

from encore.testing import assert_conforms


@pytest.mark.slow
def test_keeps_the_contract(family: str, folders: dict[str, Path]) -> None:
    assert_conforms("backend", family, model=str(folders[family]))
