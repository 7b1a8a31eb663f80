"""By name: what is found, what is refused, and what a failing check looks like in a test."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny_model import write_tiny_musicgen

from encore import plugins
from encore.conformance import assert_conforms, check
from encore.errors import UnknownNameError, UsageError


def test_a_conforming_backend_passes(tmp_path: Path) -> None:
    assert_conforms("backend", "musicgen", model=str(write_tiny_musicgen(tmp_path)))


def test_a_failing_one_raises_its_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = plugins.backends().resolve("musicgen")
    monkeypatch.setattr(target, "decode", lambda self, codes: codes.float())
    with pytest.raises(AssertionError, match=r"'musicgen' does not keep the contract:\ndecode: .*the contract: decode"):
        assert_conforms("backend", "musicgen", model=str(write_tiny_musicgen(tmp_path)))


def test_a_model_that_can_not_be_loaded_fails_one_check_and_skips_the_rest(tmp_path: Path) -> None:
    report = check("backend", "musicgen", model=str(tmp_path), offline=True)
    assert [outcome.check for outcome in report.failed] == ["load"]
    assert {outcome.state for outcome in report.outcomes[1:]} == {"skipped"}


def test_unknown_kinds_and_names_are_refused() -> None:
    with pytest.raises(UsageError, match="no kind 'methods'"):
        check("methods", "npo")
    with pytest.raises(UnknownNameError, match="no backend 'musicgn'"):
        check("backend", "musicgn")
