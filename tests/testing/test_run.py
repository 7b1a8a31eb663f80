"""By name: what is found, what is refused, and what a failing check looks like in a test."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import Installer
from tests.tiny_model import write_tiny_musicgen

from encore import plugins
from encore.backends.musicgen import MusicgenBackend
from encore.errors import InputError, UnknownNameError, UsageError
from encore.testing import assert_conforms, check


def test_a_conforming_backend_passes(tmp_path: Path) -> None:
    assert_conforms("backend", "musicgen", model=str(write_tiny_musicgen(tmp_path)))


def test_a_failing_one_raises_its_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = plugins.backends().resolve("musicgen")
    monkeypatch.setattr(target, "decode", lambda self, codes: codes.float())
    with pytest.raises(AssertionError, match=r"'musicgen' does not keep the contract:\ndecode: .*the contract: decode"):
        assert_conforms("backend", "musicgen", model=str(write_tiny_musicgen(tmp_path)))


def test_a_model_that_is_none_says_nothing_of_the_backend(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't load"):
        check("backend", "musicgen", model=str(tmp_path), offline=True)


def test_a_load_that_breaks_fails_one_check_and_skips_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(MusicgenBackend, "load", breaks)
    report = check("backend", "musicgen", model="tiny", offline=True)
    assert [result.check for result in report.failed] == ["load"]
    assert {result.state for result in report.results[2:]} == {"skipped"}


def test_unknown_kinds_and_names_are_refused() -> None:
    with pytest.raises(UsageError, match="no kind 'methods'"):
        check("methods", "npo")
    with pytest.raises(UnknownNameError, match="no backend 'musicgn'"):
        check("backend", "musicgn")


def test_a_target_that_is_not_what_it_says_fails_the_first_check(installed: Installer) -> None:
    installed.add(
        "encore-odd",
        "from encore.api import MethodSpec, hookimpl\n"
        "@hookimpl\n"
        "def encore_register_methods():\n"
        "    return [MethodSpec('odd', '', 'pathlib:Path'), MethodSpec('gone', '', 'nowhere:Gone')]\n",
    )
    for name, words in (("odd", "is not a subclass of encore.api.Method"), ("gone", "can't be imported")):
        report = check("method", name)
        assert [result.check for result in report.failed] == ["resolve"]
        assert words in report.failed[0].message
        assert report.source == "encore-odd 1.0"
