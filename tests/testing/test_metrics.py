"""The checks of a metric: each broken one fails the check that names it, and no other."""

from __future__ import annotations

import pytest
from tests.testing import broken_metrics

from encore import plugins
from encore.testing import metrics
from encore.testing.fixture import Fixture

FOUND: dict[type, dict[str, str]] = {}  # by all checks of a broken one: what one check says is then known


def failed(target: type, fixture: Fixture, only: set[str] | None = None) -> dict[str, str]:
    """The checks that failed, and what they said."""
    return {one.check: one.message for one in metrics.run(target, fixture, only=only) if one.state == "FAILED"}


@pytest.mark.parametrize("name", ["membership_auc", "extraction_strength"])
def test_built_in_metrics_keep_the_contract_on_a_model_of_hardly_any_size(name: str, small: Fixture) -> None:
    assert failed(plugins.metrics().resolve(name), small) == {}


@pytest.mark.slow
@pytest.mark.parametrize("broken", broken_metrics.ALL, ids=lambda broken: broken.__name__)
def test_a_broken_metric_fails_no_check_that_its_fault_does_not_reach(broken: type, small: Fixture) -> None:
    found = FOUND[broken] = failed(broken, small)
    assert broken.fault[0] in found
    assert set(found) <= {broken.fault[0], *broken.also}, found


@pytest.mark.parametrize("broken", broken_metrics.ALL, ids=lambda broken: broken.__name__)
def test_a_broken_metric_fails_the_check_that_names_its_fault(broken: type, small: Fixture) -> None:
    check, *words = broken.fault
    said = (FOUND.get(broken) or failed(broken, small, {check})).get(check, "nothing")
    assert [word for word in words if word not in said] == [], said
