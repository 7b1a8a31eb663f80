"""Registries: what is found, what is refused, and that one broken plugin costs only itself."""

import hashlib

import pytest

from encore import api, plugins
from encore.errors import MissingExtraError, PluginError, UnknownNameError

METRIC = """
from encore.api import Metric, MetricSpec, hookimpl

class Good(Metric):
    def measure(self, evaluation):
        return []

class Abstract(Metric):
    pass

NOT_A_CLASS = 1

@hookimpl
def encore_register_metrics():
    return [
        MetricSpec("good", "fine", "acme:Good"),
        MetricSpec("same-class", "fine", "acme:Good"),
        MetricSpec("abstract", "lacks measure", "acme:Abstract"),
        MetricSpec("not-a-class", "an int", "acme:NOT_A_CLASS"),
        MetricSpec("no-attribute", "absent", "acme:Missing"),
        MetricSpec("no-module", "absent", "acme_missing:Metric"),
        MetricSpec("no-colon", "misspelt", "acme.Good"),
        MetricSpec("raises", "at import", "acme_raises:Metric"),
        MetricSpec("leaves", "at import", "acme_leaves:Metric"),
        MetricSpec("needs-extra", "absent", "acme_raises:Metric", requires=("no-such-distribution", "pluggy")),
    ]
"""
METHOD = """
from encore.api import EditMethod, LossMethod, Method, MethodSpec, hookimpl
from encore.options import Options, TrainOptions

class Plain(Method):
    Options = Options

class NoOptions(EditMethod):
    def edit(self, session): ...

class WrongOptions(LossMethod):
    Options = Options
    def forget_loss(self, step, batch): ...

class Edit(EditMethod):
    Options = Options
    def edit(self, session): ...

@hookimpl
def encore_register_methods():
    names = ("Plain", "NoOptions", "WrongOptions", "Edit")
    return [MethodSpec(name.lower(), "a summary", f"acme:{name}") for name in names]
"""


@pytest.fixture
def metrics(installed):
    installed.add("acme", METRIC, files={"acme_raises.py": "1 / 0", "acme_leaves.py": "raise SystemExit('no licence')"})
    return plugins.metrics()


def test_entry_knows_where_it_came_from(metrics):
    entry = metrics.get("good")
    assert str(entry.source) == "acme 1.0"
    assert (entry.source.distribution, entry.source.version, entry.source.module) == ("acme", "1.0", "acme")


def test_resolve_sets_the_spec(metrics):
    good = metrics.resolve("good")
    assert issubclass(good, api.Metric)
    assert good.spec == metrics.get("good").spec
    assert metrics.resolve("good") is good


def test_two_names_of_one_class_keep_their_specs(metrics):
    good, same = metrics.resolve("good"), metrics.resolve("same-class")
    assert (good.spec.name, same.spec.name) == ("good", "same-class")
    assert issubclass(same, good)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("abstract", "does not implement measure of encore.api.Metric"),
        ("not-a-class", "is not a subclass of encore.api.Metric"),
        ("no-attribute", "AttributeError: module 'acme' has no attribute 'Missing'"),
        ("no-module", "ModuleNotFoundError: No module named 'acme_missing'"),
        ("no-colon", 'a target is written "package.module:Class"'),
        ("raises", "ZeroDivisionError: division by zero"),
        ("leaves", "SystemExit: no licence"),
    ],
)
def test_broken_target_is_told_in_one_sentence(metrics, name, told):
    with pytest.raises(PluginError) as caught:
        metrics.resolve(name)
    assert told in caught.value.message
    assert f"the metric {name!r} of acme 1.0 is broken" in caught.value.message
    assert "\n" not in caught.value.message
    assert metrics.resolve("good")


def test_missing_requirement_is_found_before_the_import(metrics):
    with pytest.raises(MissingExtraError, match="needs no-such-distribution, which is not installed") as caught:
        metrics.resolve("needs-extra")
    assert caught.value.hint == "pip install no-such-distribution"
    assert metrics.get("needs-extra").missing() == ["no-such-distribution"]


def test_unknown_name_lists_near_ones():
    with pytest.raises(UnknownNameError, match="there is no method 'nppo'") as caught:
        plugins.methods().resolve("nppo")
    assert caught.value.hint.startswith("did you mean npo")
    assert "graddiff" not in caught.value.hint, "a list of all helps nobody"
    assert "`encore methods` lists all" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("plain", "not from LossMethod or EditMethod"),
        ("nooptions", "no class Options that derives from encore.options.Options"),
        ("wrongoptions", "no class Options that derives from encore.options.TrainOptions"),
    ],
)
def test_method_contract(installed, name, told):
    installed.add("acme", METHOD)
    with pytest.raises(PluginError, match=told):
        plugins.methods().resolve(name)
    assert plugins.methods().resolve("edit").spec.name == "edit"


def test_listing_imports_no_target(metrics):
    assert {"raises", "leaves"} <= set(metrics.names)  # their modules raise when imported


def test_same_name_is_refused_to_both_and_others_work(installed):
    code = "from encore.api import MethodSpec, hookimpl\n@hookimpl\ndef encore_register_methods():\n    return "
    installed.add("one", code + "[MethodSpec('twin', 'a summary', 'one:X'), MethodSpec('ga', 'a summary', 'one:X')]")
    installed.add("two", code + "[MethodSpec('twin', 'a summary', 'two:X')]", version="2.1")
    methods = plugins.methods()
    for name, sources in {"twin": "one 1.0 and two 2.1", "ga": "encore-music 0.1.0 and one 1.0"}.items():
        with pytest.raises(PluginError, match=f"'{name}': {sources}") as caught:
            methods.resolve(name)
        assert caught.value.hint == "uninstall one of them"
    assert methods.resolve("npo")
    assert [p.where for p in plugins.plugin_errors()] == ["ga", "twin"]
    assert sum(entry.spec.name == "twin" for entry in methods) == 2


def test_listener_hears_of_every_problem_once(installed):
    installed.add("early", "1 / 0")
    installed.add(
        "late", "from encore.api import hookimpl\n@hookimpl\ndef encore_register_metrics():\n    raise ValueError"
    )
    heard = []
    plugins.manager().listen(heard.append)
    assert [problem.source.name for problem in heard] == ["early"]
    plugins.plugin_errors()
    plugins.plugin_errors()
    assert [(problem.source.name, problem.where) for problem in heard] == [
        ("early", "import"),
        ("late", "encore_register_metrics"),
    ]
    assert isinstance(heard[0].error, ZeroDivisionError)


def test_installed_hashes_the_code(installed):
    installed.add("acme", "VALUE = 1\n")
    first = {row["name"]: row for row in plugins.installed()}
    assert first["acme"] | {"sha256": None} == {
        "name": "acme", "distribution": "acme", "version": "1.0", "module": "acme", "sha256": None
    }  # fmt: skip
    content = hashlib.sha256(b"VALUE = 1\n").hexdigest()
    assert first["acme"]["sha256"] == hashlib.sha256(f"acme.py\0{content}\n".encode()).hexdigest()
    assert len(first["builtins"]["sha256"]) == 64
    (installed.folder / "acme.py").write_text("VALUE = 2\n")
    changed = {row["name"]: row["sha256"] for row in plugins.installed()}
    assert changed["acme"] != first["acme"]["sha256"]
    assert changed["builtins"] == first["builtins"]["sha256"]
