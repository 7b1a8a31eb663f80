"""The contract as Encore itself runs it, on every family."""

from __future__ import annotations

from pathlib import Path

import pytest

from encore import plugins
from encore.testing import assert_conforms


@pytest.mark.slow
def test_keeps_the_contract(family: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    if family == "audioldm2":  # its sampler's 200 steps take a minute, and show no more than 20 do
        monkeypatch.setattr(plugins.backends().resolve(family), "inference_steps", 20)
    assert_conforms("backend", family, model=str(folders[family]))
