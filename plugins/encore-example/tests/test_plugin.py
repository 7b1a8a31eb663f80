"""Encore finds the plugin, and its classes keep their contracts."""

from encore import plugins
from encore.testing import assert_conforms


def test_method_is_found():
    method = plugins.methods().resolve("example-hinge")
    assert method.Options().margin == 0
    assert method.spec.needs == {"retain", "holdout"}


def test_metric_is_found():
    assert plugins.metrics().resolve("example_entropy").spec.needs == {"logits"}


def test_method_keeps_the_contract():
    assert_conforms("method", "example-hinge")


def test_metric_keeps_the_contract():
    assert_conforms("metric", "example_entropy")


def test_nothing_is_wrong():
    assert [p for p in plugins.plugin_errors() if p.source.distribution == "encore-example"] == []
