"""Everything that Encore and its example plugin register keeps the contract, each within its time on one core."""

from __future__ import annotations

from pathlib import Path

import pytest

from encore import plugins
from encore.conformance import assert_conforms
from encore.conformance.select import chosen

ROOT = Path(__file__).resolve().parents[2]
BUILT_IN = [(kind, name) for kind, name in chosen(distribution="encore-music")]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), BUILT_IN, ids=[f"{kind} {name}" for kind, name in BUILT_IN])
def test_a_built_in_keeps_the_contract(kind: str, name: str) -> None:
    assert_conforms(kind, name)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("method", "example-hinge"), ("metric", "example_entropy")])
def test_the_example_plugin_keeps_the_contract(kind: str, name: str, installed, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "plugins" / "encore-example" / "src"))
    installed.add("encore-sample", "from encore_example import *\nfrom encore_example import encore_register_methods\n")
    plugins.reset()
    assert_conforms(kind, name)


def test_built_ins_are_all_four_kinds() -> None:
    assert {kind for kind, _ in BUILT_IN} == {"method", "backend", "metric", "embedder"}
