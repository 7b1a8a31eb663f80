"""The checks of a backend: the built-in one keeps the contract, and each broken one fails the check that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.testing import broken_backends, broken_tokenless
from tests.tiny_model import write_tiny_musicgen

from encore import plugins
from encore.testing import backends
from encore.testing.fixture import LatentBackend

BROKEN = [*broken_backends.ALL, *broken_tokenless.ALL]


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_musicgen(tmp_path_factory.mktemp("model"), channels=request.param, dropout=0.1)


@pytest.fixture(scope="module")
def mono(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_musicgen(tmp_path_factory.mktemp("mono"))


FOUND: dict[type, dict[str, str]] = {}  # by all checks of a broken one: what one check says is then known


def failed(target: type, folder: Path, only: set[str] | None = None) -> dict[str, str]:
    """The checks that failed, and what they said."""
    found = backends.run(target, str(folder), offline=True, only=only)
    return {one.check: one.message for one in found if one.state == "FAILED"}


def test_musicgen_of_random_weights_keeps_the_contract(folder: Path) -> None:
    assert failed(plugins.backends().resolve("musicgen"), folder) == {}


def test_a_backend_without_tokens_keeps_the_contract(mono: Path) -> None:
    found = backends.run(LatentBackend, str(mono), offline=True)
    assert {one.check: one.message for one in found if one.state == "FAILED"} == {}
    skipped = {one.check for one in found if one.state == "skipped"}
    assert skipped == {"token_mask", "logits", "token_logprobs", "causality", "prompt", "greedy"}


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_backend_fails_no_check_that_its_fault_does_not_reach(broken: type, mono: Path) -> None:
    found = FOUND[broken] = failed(broken, mono)
    assert broken.fault[0] in found
    assert set(found) <= {broken.fault[0], *broken.also}, found


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_backend_fails_the_check_that_names_its_fault(broken: type, mono: Path) -> None:
    check, *words = broken.fault
    said = (FOUND.get(broken) or failed(broken, mono, {check})).get(check, "nothing")
    assert [word for word in words if word not in said] == [], said


def test_what_is_not_trained_may_stand_in_module_where_it_says_so(mono: Path) -> None:
    class Fixed(broken_backends.SpareParameter):
        def __init__(self, *given):
            super().__init__(*given)
            self.module.spare.requires_grad_(False)

    found = backends.run(Fixed, str(mono), offline=True, only={"mode", "gradients", "training", "curvature"})
    assert [one.check for one in found if one.state == "FAILED"] == []
    assert "spare of module requires no gradient" in found[1].message
