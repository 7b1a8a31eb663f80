"""Which things are checked, and what becomes of those that can't be tried here."""

from __future__ import annotations

import pytest
from tests.conftest import Installer

from encore.errors import MissingExtraError, UnknownNameError, UsageError
from encore.testing import run
from encore.testing.core import CheckResult, Report

PLUGIN = """
from encore.api import BackendSpec, MethodSpec, MetricSpec, hookimpl

@hookimpl
def encore_register_methods():
    return [MethodSpec("twice", "", "x:Y"), MethodSpec("lonely", "", "x:Y", requires=("no-such-package",))]

@hookimpl
def encore_register_metrics():
    return [MetricSpec("twice", "", "x:Y")]

@hookimpl
def encore_register_backends():
    return [BackendSpec("waves", "", "x:Y")]
"""


@pytest.fixture(autouse=True)
def plugin(installed: Installer) -> None:
    installed.add("encore-odd", PLUGIN)


def test_one_name_is_one_thing() -> None:
    assert run.choose("npo") == [("method", "npo")]
    assert run.choose("twice", kind="metric") == [("metric", "twice")]
    assert run.choose("latents") == [("embedder", "latents")]


def test_a_distribution_is_all_that_it_registers() -> None:
    everything = [("method", "twice"), ("method", "lonely"), ("backend", "waves"), ("metric", "twice")]
    assert run.choose(distribution="encore-odd") == everything
    assert run.choose(distribution="encore-odd", kind="backend") == [("backend", "waves")]
    assert set(everything) | {("backend", "musicgen"), ("metric", "nll")} <= set(run.choose(everything=True))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "one of them"),
        ({"name": "npo", "everything": True}, "one of them"),
        ({"name": "npo", "kind": "methods"}, "no kind 'methods'"),
        ({"name": "twice"}, "'twice' is a method and a metric"),
        ({"distribution": "encore-even"}, "no plugin comes from 'encore-even'"),
    ],
)
def test_what_is_not_clear_is_refused(given: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run.choose(**given)


def test_a_near_name_is_offered() -> None:
    with pytest.raises(UnknownNameError) as caught:
        run.choose("simpno")
    assert "simnpo" in caught.value.hint


def test_of_several_those_that_can_not_be_tried_are_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def check(kind, name, *, model, backend, **rest):
        asked.append((kind, name, model, backend))
        if name == "lonely":
            raise MissingExtraError("it needs no-such-package", "pip install no-such-package")
        return Report(kind, name, "", (CheckResult("a", "b", "passed"),))

    monkeypatch.setattr(run, "check", check)
    things = run.choose(distribution="encore-odd")
    reports = {(report.kind, report.name): report.results[0] for report in run.check_all(things)}
    assert reports["method", "lonely"].state == reports["backend", "waves"].state == "skipped"
    assert "pip install no-such-package" in reports["method", "lonely"].message
    assert "--model" in reports["backend", "waves"].message
    assert reports["metric", "twice"].state == "passed"
    with pytest.raises(MissingExtraError):
        run.check_all([("method", "lonely")])


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        (None, {("backend", "waves", "folder", None), ("metric", "twice", None, None)}),
        ("waves", {("backend", "waves", "folder", None), ("metric", "twice", "folder", "waves")}),
        ("musicgen", {("metric", "twice", "folder", "musicgen")}),
    ],
)
def test_a_model_goes_to_the_backend_that_reads_it(backend, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = set()

    def check(kind, name, *, model, backend, **rest):
        asked.add((kind, name, model, backend))
        return Report(kind, name, "", ())

    monkeypatch.setattr(run, "check", check)
    run.check_all([("backend", "waves"), ("metric", "twice")], model="folder", backend=backend)
    assert asked == expected


def test_one_method_takes_the_model_of_the_default_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(run, "check", lambda kind, name, **given: asked.append(given["model"]))
    run.check_all([("method", "npo")], model="folder")
    assert asked == ["folder"]
