"""Encore's own plugin comes in by the same door as anybody's, and every target it names is there."""

from pathlib import Path

import pytest

from encore import builtins, plugins
from encore.entrypoints import entry_points

ENTRIES = [(plural, entry) for plural, registry in plugins.registries().items() for entry in registry]
OWN = [(plural, entry.spec) for plural, entry in ENTRIES if entry.source.distribution == "encore-music"]


def test_they_come_through_the_entry_point():
    points = [point for point in entry_points("encore") if point.distribution == "encore-music"]
    assert [(point.name, point.value) for point in points] == [("builtins", "encore.builtins")]
    assert [spec for plural, spec in OWN if plural == "methods"] == builtins.encore_register_methods()
    assert plugins.Plugins([]).specs("encore_register_methods", object) == [], "there is a private path"


def test_nothing_is_wrong_with_them():
    assert [str(p) for p in plugins.plugin_errors() if p.source.distribution == "encore-music"] == []


@pytest.mark.parametrize(("plural", "spec"), OWN, ids=lambda value: getattr(value, "name", value))
def test_target_resolves(plural, spec):
    target = plugins.registries()[plural].resolve(spec.name)
    assert target.spec == spec
    assert target.__doc__, "a public class has a docstring"


@pytest.mark.parametrize(("plural", "spec"), OWN, ids=lambda value: getattr(value, "name", value))
def test_listing_fits_a_line(plural, spec):
    assert spec.name == spec.name.lower()
    assert 10 <= len(spec.summary) <= 60
    assert not spec.summary.endswith(".")


def test_every_metric_is_in_the_table_of_metrics():
    text = (Path(__file__).resolve().parents[1] / "docs/metrics.md").read_text()
    table = text.partition("## All metrics")[2].partition("## ")[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.startswith("| `")]
    listed = {row[1].strip("`"): row[4] == "`--full`" for row in rows}
    assert listed == {spec.name: spec.full for plural, spec in OWN if plural == "metrics"}
