"""`encore methods|backends|metrics|embedders`."""

import json
from dataclasses import asdict

import pytest

from encore import plugins
from encore.cli.app import run
from encore.store.meta_json import RowTrust, trial_key
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
    for folder, told in ((tmp_path / "nowhere", b"there is no folder"), (tmp_path, b"there is no bench in")):
        assert run(["metrics", "--bench", str(folder)]) == 3
        assert told in capsysbinary.readouterr().err
    trial = tmp_path / "ga/seed-0"
    trial.mkdir(parents=True)
    for name in ("request.json", "evaluation.json", "metrics.json", "../../bench.json"):
        write_json(trial / name, {})
    assert run(["metrics", "--bench", str(tmp_path)]) == 3
    assert b"hint: try them: encore bench --meta --out" in capsysbinary.readouterr().err
    starred = [
        RowTrust(name, "forget", f"of {name}", "yes", 0.9, 0.8, 1.0, 11, 10, order={})
        for name in ("artist_rank", "artist_rank_clap", "artist_confidence")
    ]
    contents = {"schema": 1, "key": trial_key(trial), "models": {}, "rows": [asdict(row), *map(asdict, starred)]}
    write_json(tmp_path / "meta.json", contents)
    lines = shown(capsysbinary, "metrics", "nll", "--bench", str(tmp_path)).decode().splitlines()
    table = {tuple(line.split()[:2]): line.rstrip() for line in lines}
    assert table["nll", "forget"].endswith("no, AUC 0.60 (0.40 to 0.80), 11 and 10 models")
    assert table["nll", "retain"].endswith("not tried")
    rows = json.loads(shown(capsysbinary, "metrics", "nll", "--bench", str(tmp_path), "--json"))["metric"]["rows"]
    assert [[found["auc"] for found in spec["trust"]] for spec in rows if spec["set"] == "forget"] == [[0.6], []]
    lines = shown(capsysbinary, "metrics", "artist_attribution", "--bench", str(tmp_path)).decode().splitlines()
    table = {line.split()[0]: line.rstrip() for line in lines if line.startswith("artist_")}
    yes = "yes, AUC 0.90 (0.80 to 1.00), 11 and 10 models"
    assert table["artist_rank*"].endswith(f"  of artist_rank: {yes}; of artist_rank_clap: {yes}")
    assert table["artist_confidence*"].endswith(f"  {yes}")
    listed = json.loads(shown(capsysbinary, "metrics", "--bench", str(tmp_path), "--json"))["metrics"]
    trusted = {row["name"]: row["trusted"] for row in listed}
    every = "; ".join(f"of {name}: {yes}" for name in ("artist_rank", "artist_rank_clap", "artist_confidence"))
    assert trusted["artist_attribution"] == every
    assert trusted["nll"] == row.text
    write_json(trial / "evaluation.json", {"samples_per_caption": 4})
    assert run(["metrics", "--bench", str(tmp_path)]) == 3
    assert b"does not count any more" in capsysbinary.readouterr().err


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
