"""`encore config`."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path

import pytest

import encore
from encore import plugins
from encore.settings import ENVIRONMENT, read_config, resolve_options

SOURCE = Path(encore.__file__).parent
CSRC = Path(__file__).resolve().parents[2] / "csrc"


@pytest.mark.parametrize("method", ["encore", "npo"])
def test_case_E12_the_example_is_a_config_file_of_defaults(call, tmp_path, method):
    done = call("config", "--method", method)
    assert done.code == 0, done.err
    assert tomllib.loads(done.out) == {"options": {}}, "as it is, it changes nothing"
    taken = re.sub(r"^# (\w+ = .+)$", r"\1", done.out, flags=re.MULTILINE)
    (tmp_path / "all.toml").write_text(taken)
    known = set(re.findall(r"^#? ?(\w+) = ", done.out.partition("[options]")[0], re.MULTILINE))
    config = read_config(tmp_path / "all.toml", known)
    assert config.flags["method"] == method
    assert {"tracks", "holdout", "lr"} <= known
    options = plugins.methods().resolve(method).Options
    assert resolve_options(options, config=config.options, environ={}).options == options()
    assert set(re.findall(r"^# (\w+) = ", done.out.partition("[options]")[2], re.MULTILINE)) == set(
        options.model_fields
    )


def test_every_flag_of_the_example_is_one_that_forget_reads(call, studio, tmp_path):
    Path("a.toml").write_text(re.sub(r"^# (\w+ = .+)$", r"\1", call("config").out, flags=re.MULTILINE))
    done = call("forget", "--config", "a.toml", "--tracks", studio / "music/missing.txt")
    assert done.code == 3, done.err
    assert "missing.txt" in done.err


def test_bad_input(call):
    assert "did you mean npo" in call("config", "--method", "nop").err
    assert call("config", "--json").code == 2


def test_case_E12_every_environment_variable_is_listed(call, monkeypatch):
    named = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named |= set(re.findall(r"\b_?ENCORE_[A-Z_]+", node.value))
    texts = [path.read_text("utf-8") for path in CSRC.rglob("*") if path.suffix in (".cpp", ".h", ".cu", ".cuh")]
    named |= {name for text in texts for name in re.findall(r'getenv\("(\w+)"\)', text)}
    macros = {name for text in texts for name in re.findall(r"#define (ENCORE_\w+)", text)}
    options = {name for name in named if name.startswith("ENCORE_OPTION_")}
    assert named - macros - options - set(ENVIRONMENT) == set()
    monkeypatch.setenv("ENCORE_OPTION_LR", "0.5")
    rows = {row["name"]: row for row in json.loads(call("config", "--env", "--json").out)["variables"]}
    assert rows.keys() == ENVIRONMENT.keys()
    assert rows["ENCORE_OPTION_"]["set"] == {"ENCORE_OPTION_LR": "0.5"}
    assert "ENCORE_CACHE" in call("config", "--env").out
