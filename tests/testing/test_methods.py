"""The checks of a method: each broken one fails the check that names it, and no other."""

from __future__ import annotations

import pytest
from tests.testing import broken_methods

from encore import plugins
from encore.api import EditMethod, LossMethod, MethodSpec
from encore.methods.graddiff import GradDiff
from encore.testing import methods
from encore.testing.fixture import Fixture

FOUND: dict[type, dict[str, str]] = {}  # by all checks of a broken one: what one check says is then known


def failed(target: type, fixture: Fixture, only: set[str] | None = None) -> dict[str, str]:
    """The checks that failed, and what they said."""
    return {one.check: one.message for one in methods.run(target, fixture, only=only) if one.state == "FAILED"}


@pytest.mark.parametrize("name", ["graddiff", "ssd"])
def test_built_in_methods_keep_the_contract_on_a_model_of_hardly_any_size(name: str, small: Fixture) -> None:
    assert failed(plugins.methods().resolve(name), small) == {}


@pytest.mark.slow
@pytest.mark.parametrize("broken", broken_methods.ALL, ids=lambda broken: broken.__name__)
def test_a_broken_method_fails_no_check_that_its_fault_does_not_reach(broken: type, small: Fixture) -> None:
    found = FOUND[broken] = failed(broken, small)
    assert broken.fault[0] in found
    assert set(found) <= {broken.fault[0], *broken.also}, found


@pytest.mark.parametrize("broken", broken_methods.ALL, ids=lambda broken: broken.__name__)
def test_a_broken_method_fails_the_check_that_names_its_fault(broken: type, small: Fixture) -> None:
    check, *words = broken.fault
    said = (FOUND.get(broken) or failed(broken, small, {check})).get(check, "nothing")
    assert [word for word in words if word not in said] == [], said


class NearBase(LossMethod):
    """A loss that reads the base model; its own spec declares nothing."""

    spec = MethodSpec("near-base", "", "", needs=frozenset({"retain"}))

    def forget_loss(self, step, batch):
        return -step.backend.losses(batch)

    def retain_loss(self, step, batch):
        return (step.backend.losses(batch) - step.reference.nll(batch)) ** 2


class TrainsNearBase(EditMethod):
    Options = GradDiff.Options
    spec = MethodSpec("trains-near-base", "", "", needs=frozenset({"retain", "reference"}))

    def edit(self, session):
        inner = NearBase(self.options)
        session.train(inner)
        assert isinstance(inner, NearBase)


class TrainsNearBaseUndeclared(TrainsNearBase):
    spec = MethodSpec("trains-undeclared", "", "", needs=frozenset({"retain"}))


def test_case_E4_what_an_inner_loss_reads_the_edit_reads(small: Fixture) -> None:
    assert failed(TrainsNearBase, small) == {}
    said = failed(TrainsNearBaseUndeclared, small, {"needs"})
    assert "it reads step.reference, but its spec's needs lack 'reference'" in said["needs"]


class KeepsTheSession(GradDiff):
    """It reads what it needs later, from the session that it kept."""

    spec = MethodSpec("keeps-the-session", "", "", needs=frozenset({"retain", "holdout"}))

    def prepare(self, session):
        super().prepare(session)
        self.session = session

    def forget_loss(self, step, batch):
        return super().forget_loss(step, batch) + self.session.holdout_nll


def test_a_kept_session_is_still_watched(small: Fixture) -> None:
    assert failed(KeepsTheSession, small, {"needs"}) == {}
