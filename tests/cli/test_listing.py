"""`encore methods|backends|metrics|embedders`."""

import json
from dataclasses import asdict

import pytest

from encore import plugins
from encore.cli.app import run
from encore.store.meta_json import RowTrust
from encore.store.run_folder import write_json

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


def test_what_a_bench_found_of_the_metrics(tmp_path, capsysbinary):
    row = RowTrust("nll", "forget", "NLL, forget", "no", 0.6, 0.4, 0.8, 11, 10, order={})
    assert run(["metrics", "--bench", str(tmp_path)]) == 3
    assert b"hint: try them: encore bench --meta --out" in capsysbinary.readouterr().err
    write_json(tmp_path / "meta.json", {"schema": 1, "models": {}, "rows": [asdict(row)]})
    lines = shown(capsysbinary, "metrics", "nll", "--bench", str(tmp_path)).decode().splitlines()
    table = {tuple(line.split()[:2]): line.rstrip() for line in lines}
    assert table["nll", "forget"].endswith("no, AUC 0.60 (0.40 to 0.80), 11 and 10 models")
    assert table["nll", "retain"].endswith("not tried")
    rows = json.loads(shown(capsysbinary, "metrics", "nll", "--bench", str(tmp_path), "--json"))["metric"]["rows"]
    assert [spec["trust"]["auc"] for spec in rows if "trust" in spec] == [0.6]


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
