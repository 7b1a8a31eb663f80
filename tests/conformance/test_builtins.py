"""Everything that Encore registers keeps the contract, each within its time on one core."""

from __future__ import annotations

import pytest

from encore.conformance import assert_conforms
from encore.conformance.select import chosen

BUILT_IN = [(kind, name) for kind, name in chosen(distribution="encore-music")]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), BUILT_IN, ids=[f"{kind} {name}" for kind, name in BUILT_IN])
def test_a_built_in_keeps_the_contract(kind: str, name: str) -> None:
    assert_conforms(kind, name)


def test_built_ins_are_all_four_kinds() -> None:
    assert {kind for kind, _ in BUILT_IN} == {"method", "backend", "metric", "embedder"}
