"""The checks of a backend: the built-in one keeps the contract, and each broken one fails the check that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conformance import broken_backends
from tests.tiny_model import write_tiny_musicgen

from encore.api import BackendSpec
from encore.backends.musicgen import MusicgenBackend
from encore.conformance import backends


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_musicgen(tmp_path_factory.mktemp("model"), channels=request.param, dropout=0.1)


@pytest.fixture(scope="module")
def mono(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_musicgen(tmp_path_factory.mktemp("mono"))


def failed(target: type, folder: Path, only: set[str] | None = None) -> dict[str, str]:
    """The checks that failed, and what they said."""
    target.spec = BackendSpec("musicgen", "", "")
    found = backends.run(target, str(folder), offline=True, only=only)
    return {one.check: one.said for one in found if one.state == "FAILED"}


def test_musicgen_of_random_weights_keeps_the_contract(folder: Path) -> None:
    assert failed(MusicgenBackend, folder) == {}


@pytest.mark.parametrize("broken", broken_backends.ALL, ids=lambda broken: broken.__name__)
def test_a_broken_backend_fails_the_check_that_names_its_fault(broken: type, mono: Path) -> None:
    check, *words = broken.fault
    said = failed(broken, mono, {check}).get(check, "nothing")
    assert [word for word in words if word not in said] == [], said


@pytest.mark.slow
@pytest.mark.parametrize("broken", broken_backends.ALL, ids=lambda broken: broken.__name__)
def test_a_broken_backend_fails_no_check_that_its_fault_does_not_reach(broken: type, mono: Path) -> None:
    found = failed(broken, mono)
    assert broken.fault[0] in found
    assert set(found) <= {broken.fault[0], *broken.also}, found
