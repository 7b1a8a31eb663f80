"""The checks of a embedder: each broken one fails the check that names it, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.embedders.networks import save_ast, save_clap
from tests.testing import broken_embedders

from encore import plugins
from encore.testing import embedders
from encore.testing.fixture import Fixture

FOUND: dict[type, dict[str, str]] = {}  # by all checks of a broken one: what one check says is then known


def failed(target: type, fixture: Fixture, only: set[str] | None = None) -> dict[str, str]:
    """The checks that failed, and what they said."""
    return {one.check: one.message for one in embedders.run(target, fixture, only=only) if one.state == "FAILED"}


@pytest.mark.parametrize("name", plugins.embedders().names)
def test_built_in_embedders_keep_the_contract(name: str, tiny: Fixture) -> None:
    assert failed(plugins.embedders().resolve(name), tiny) == {}


@pytest.mark.parametrize(("name", "save"), [("clap", save_clap), ("ast", save_ast)])
def test_networks_with_weights_of_their_own_do(name: str, save, tmp_path: Path, tiny: Fixture) -> None:
    target = plugins.embedders().resolve(name)
    small = type("Small", (target,), {"default": str(save(tmp_path)), "spec": target.spec})
    found = embedders.run(small, tiny)
    assert {one.check: one.message for one in found if one.state == "FAILED"} == {}
    skipped = {one.check for one in found if one.state == "skipped"}
    assert skipped == ({"embed_codes"} if name == "clap" else {"embed_codes", "embed_text"})


def test_weights_that_are_not_on_disk_are_no_fault(tiny: Fixture) -> None:
    target = plugins.embedders().resolve("clap")
    absent = type("Absent", (target,), {"default": "nobody/nothing", "spec": target.spec})
    found = embedders.run(absent, tiny)
    assert {one.state for one in found} == {"skipped"}
    assert all("can't load nobody/nothing" in one.message for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("broken", broken_embedders.ALL, ids=lambda broken: broken.__name__)
def test_a_broken_embedder_fails_no_check_that_its_fault_does_not_reach(broken: type, tiny: Fixture) -> None:
    found = FOUND[broken] = failed(broken, tiny)
    assert broken.fault[0] in found
    assert set(found) <= {broken.fault[0], *broken.also}, found


@pytest.mark.parametrize("broken", broken_embedders.ALL, ids=lambda broken: broken.__name__)
def test_a_broken_embedder_fails_the_check_that_names_its_fault(broken: type, tiny: Fixture) -> None:
    check, *words = broken.fault
    said = (FOUND.get(broken) or failed(broken, tiny, {check})).get(check, "nothing")
    assert [word for word in words if word not in said] == [], said
