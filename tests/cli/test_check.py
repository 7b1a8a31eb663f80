"""`encore plugins check`: a table or JSON on stdout, the rest on stderr, and 4 where a check fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tiny_model import write_tiny_musicgen

from encore import plugins


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_musicgen(tmp_path_factory.mktemp("model"))


def test_a_method_is_checked_on_a_model(call, model: Path) -> None:
    done = call("plugins", "check", "ft", "--model", model, "--offline")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["plugin", "check", "result", "message"]
    assert any("reference" in line and "skipped   it does not need the reference" in line for line in lines)
    assert lines[-1].split() == ["method", "ft", "17", "of", "19", "passed"]
    assert "checking method ft" in done.err
    (checked,) = json.loads(call("plugins", "check", "ft", "--model", model, "--offline", "--json").out)["checked"]
    assert ("resume", "passed") in [(row["check"], row["result"]) for row in checked["checks"]]
    assert "1 checked: 17 checks passed, 0 failed, 2 skipped" in done.err


def test_a_failing_check_ends_in_4_and_names_the_fault(call, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = plugins.backends().resolve("musicgen")
    monkeypatch.setattr(target, "decode", lambda self, codes: codes.float())
    done = call("plugins", "check", "musicgen", "--model", model, "--json")
    assert done.code == 4
    (checked,) = json.loads(done.out)["checked"]
    assert (checked["kind"], checked["name"], checked["passed"]) == ("backend", "musicgen", False)
    assert [row["check"] for row in checked["checks"] if row["result"] == "failed"] == ["decode"]
    table = call("plugins", "check", "musicgen", "--model", model).out.splitlines()[2:]
    assert [line.split()[3] for line in table if "FAILED" in line or "skipped" in line] == ["FAILED"] + ["skipped"] * 4
    assert table[0].split()[:4] == ["backend", "musicgen", "decode", "FAILED"]
    assert table[-1].split() == ["backend", "musicgen", "29", "of", "34", "passed"]
    assert "error: backend musicgen does not keep the contract: 1 check failed" in done.err
    assert "hint:" in done.err


def test_a_backend_of_anybodys_needs_a_model(call, installed) -> None:
    code = "from encore.api import BackendSpec, hookimpl\n@hookimpl\ndef encore_register_backends():\n"
    installed.add(
        "encore-waves", code + "    return [BackendSpec('waves', '', 'encore.testing.fixture:LatentBackend')]\n"
    )
    done = call("plugins", "check", "waves")
    assert done.code == 2
    assert "--model" in done.err


def test_an_unknown_name_is_a_usage_error(call) -> None:
    done = call("plugins", "check", "nposs")
    assert done.code == 2
    assert "did you mean npo" in done.err


def test_a_model_that_is_none_is_bad_input(call, tmp_path: Path) -> None:
    assert call("plugins", "check", "ft", "--model", tmp_path, "--offline").code == 3
    done = call("plugins", "check", "musicgen", "--model", tmp_path, "--offline")
    assert (done.code, done.out) == (3, ""), done.err
    assert f"error: can't load {tmp_path} as a MusicGen model" in done.err
