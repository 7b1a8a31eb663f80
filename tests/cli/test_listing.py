"""`encore methods|backends|metrics|embedders`."""

import json

import pytest

from encore import plugins
from encore.cli.app import run

NEEDY = """
from encore.api import MethodSpec, hookimpl

@hookimpl
def encore_register_methods():
    needs = {"requires": ("no-such-distribution",)}
    return [
        MethodSpec("needy", "a summary", "needy:Method", **needs),
        MethodSpec("special", "a summary", "needy:Method", **needs, install="make special"),
    ]
"""


def shown(capsys, *arguments):
    assert run(list(arguments)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("plural", ["methods", "backends", "metrics", "embedders"])
def test_json(capsysbinary, plural):
    listed = json.loads(shown(capsysbinary, plural, "--json"))
    assert listed["schema"] == 1
    assert [row["name"] for row in listed[plural]] == plugins.registries()[plural].names
    assert set(listed[plural][0]) - {"full"} == {
        "name", "summary", "needs", "requires", "target", "plugin", "distribution", "version", "available", "why"
    }  # fmt: skip
    assert ("full" in listed[plural][0]) == (plural == "metrics")
    assert {row["distribution"] for row in listed[plural]} == {"encore-music"}


def test_table(capsys):
    lines = shown(capsys, "methods").splitlines()
    assert lines[0].split() == ["name", "summary", "needs", "from", "available"]
    assert any(line.startswith("npo ") and "reference_nll, retain" in line for line in lines)


def test_one_method_shows_its_options(capsys):
    text = shown(capsys, "methods", "npo")
    assert text.startswith("npo: negative preference optimisation\nfrom encore-music 0.1.0 (encore.methods.npo:Npo)\n")
    assert any(line.split()[:2] == ["beta", "number"] for line in text.splitlines())
    assert "linear | cosine | constant" in text


def test_one_method_as_json(capsysbinary):
    method = json.loads(shown(capsysbinary, "methods", "npo", "--json"))["method"]
    options = {option["name"]: option for option in method["options"]}
    assert options["steps"]["type"] == "integer"
    assert options["beta"]["description"]


def test_one_metric(capsys):
    assert "needs gold, logits" in shown(capsys, "metrics", "kl_gold")


def test_a_metrics_rows_say_what_they_mean_and_must_reach(installed, capsysbinary):
    (row,) = json.loads(shown(capsysbinary, "metrics", "relearn", "--json"))["metric"]["rows"]
    assert (row["set"], row["direction"], row["judge"]) == ("forget", "higher", "relearned")
    lines = shown(capsysbinary, "metrics", "verbatim").decode().splitlines()
    table = [line.split() for line in lines if line.startswith("verbatim ")]
    assert [line[1] for line in table] == ["forget", "retain"]
    assert "at most one fewer than base" in lines[-1]


def test_what_is_missing_is_told(installed, capsysbinary):
    installed.add("needy", NEEDY)
    rows = {row["name"]: row for row in json.loads(shown(capsysbinary, "methods", "--json"))["methods"]}
    assert (rows["needy"]["available"], rows["needy"]["why"]) == (False, "needs no-such-distribution")
    assert (rows["ga"]["available"], rows["ga"]["why"]) == (True, None)
    assert run(["methods", "needy"]) == 1
    assert b"hint: pip install no-such-distribution" in capsysbinary.readouterr().err
    assert rows["special"]["why"] == "needs no-such-distribution: make special"
    assert run(["methods", "special"]) == 1
    assert b"hint: make special\n" in capsysbinary.readouterr().err
