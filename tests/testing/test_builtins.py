"""Everything that Encore registers keeps the contract, each within its time on one core.

Methods and metrics are tried on a model of hardly any size, where they do all they do in a fraction of the time; a few
of both on the embedded model too, as `encore plugins check` tries them.
"""

from __future__ import annotations

import pytest

from encore import plugins
from encore.methods.npo import Npo
from encore.testing import assert_conforms, methods, metrics
from encore.testing.fixture import Fixture
from encore.testing.run import choose

BUILT_IN = [(kind, name) for kind, name in choose(distribution="encore-music")]
FEW = (
    "encore",
    "ssd",
    "verbatim",
    "relearn",
    "clap_score",
)  # the default, an edit, generation, training, an audio embedder
ON_EMBEDDED = [(kind, name) for kind, name in BUILT_IN if kind not in ("method", "metric") or name in FEW]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), ON_EMBEDDED, ids=[f"{kind} {name}" for kind, name in ON_EMBEDDED])
def test_a_built_in_keeps_the_contract_on_the_embedded_model(kind: str, name: str) -> None:
    assert_conforms(kind, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", plugins.methods().names)
def test_a_built_in_method_keeps_the_contract(name: str, small: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    few = Npo(Npo.Options(steps=4, eval_every=4))  # in place of all steps of the method that `undo` begins with
    monkeypatch.setattr("encore.methods.undo.unlearning_method", lambda *_: few)
    found = methods.run(plugins.methods().resolve(name), small)
    assert {one.check: one.message for one in found if one.state == "FAILED"} == {}
    assert sum(one.state == "passed" for one in found) >= 12  # six of 18 don't apply to one that edits


@pytest.mark.slow
@pytest.mark.parametrize("name", plugins.metrics().names)
def test_a_built_in_metric_keeps_the_contract(name: str, small: Fixture) -> None:
    found = metrics.run(plugins.metrics().resolve(name), small)
    assert {one.check: one.message for one in found if one.state == "FAILED"} == {}
    passed = sum(one.state == "passed" for one in found)
    assert passed >= len(found) - 3, [one for one in found if one.state != "passed"]


def test_built_ins_are_all_four_kinds() -> None:
    assert {kind for kind, _ in BUILT_IN} == {"method", "backend", "metric", "embedder"}
