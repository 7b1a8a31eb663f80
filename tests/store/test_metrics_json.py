from __future__ import annotations

import json
from pathlib import Path

import pytest

from encore.api import Result
from encore.errors import InputError
from encore.store.metrics_json import metrics_json, read_metrics, write_metrics

ROWS = [
    Result("nll", "base", "forget", 0.5, 0.4, 0.6, n=2, unit="nats/token", per_track={"a": 0.4, "b": None}),
    Result("relearn", "gold", "forget", None, why="not measured", details={"curve": [1.0, 0.5], "embedder": "x/1"}),
]


def test_schema_is_that_of_the_design():
    found = metrics_json(ROWS)
    assert found["schema"] == 1
    keys = ["metric", "model", "set", "value", "low", "high", "n", "unit", "per_track", "why"]
    assert all(set(keys) <= set(row) for row in found["results"])
    assert found["results"][0]["per_track"] == {"a": 0.4, "b": None}


def test_a_file_is_read_back_as_it_was_written(tmp_path):
    write_metrics(tmp_path / "metrics.json", ROWS)
    assert read_metrics(tmp_path / "metrics.json") == ROWS


def test_keys_of_a_newer_version_are_left_out(tmp_path):
    content = metrics_json(ROWS)
    content["results"][0]["novel"] = 1
    (tmp_path / "m.json").write_text(json.dumps(content))
    assert read_metrics(tmp_path / "m.json") == ROWS


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2, "results": []}', '{"schema": 1, "results": [{}]}'])
def test_what_is_not_a_metrics_file_is_refused(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(InputError, match=r"m\.json"):
        read_metrics(tmp_path / "m.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="can't read"):
        read_metrics(tmp_path / "none.json")


@pytest.mark.parametrize("name", ["per_track", "details"])
def test_tables_that_are_none(tmp_path: Path, name: str) -> None:
    write_metrics(tmp_path / "metrics.json", [Result("nll", "base", "forget", 1.0)])
    told = json.loads((tmp_path / "metrics.json").read_text())
    told["results"][0][name] = 3
    (tmp_path / "metrics.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match=rf"metrics.json was changed, .* results.0.{name}: "):
        read_metrics(tmp_path / "metrics.json")


@pytest.mark.parametrize("name", ["value", "low", "per_track"])
def test_figures_that_are_none(tmp_path: Path, name: str) -> None:
    write_metrics(tmp_path / "metrics.json", [Result("nll", "base", "forget", 1.0, 0.5, 1.5)])
    told = json.loads((tmp_path / "metrics.json").read_text())
    told["results"][0][name] = {"a": "1.0"} if name == "per_track" else "1.0"
    (tmp_path / "metrics.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match=rf"results.0.{name}.*: input should be a valid number"):
        read_metrics(tmp_path / "metrics.json")
