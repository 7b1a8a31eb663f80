"""Rows 16 and 23 of the fault list, with real processes: broken plugins, and an extension that does not fit."""

import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """
from encore.api import MethodSpec, hookimpl

@hookimpl
def encore_register_methods():
    return [MethodSpec("good-method", "a summary", "good:Method")]
"""
HOOK = "from encore.api import MethodSpec, hookimpl\n@hookimpl\ndef encore_register_methods():\n    "
FAULTS = {
    "raises at import": ("1 / 0", "import", "ZeroDivisionError: division by zero"),
    "leaves at import": ("raise SystemExit(3)", "import", "SystemExit: 3"),
    "syntax error": ("def (", "import", "SyntaxError"),
    "raises in a hook": (HOOK + "raise RuntimeError('no\\nluck')", "encore_register_methods", "RuntimeError: no luck"),
    "leaves in a hook": (HOOK + "raise SystemExit", "encore_register_methods", "it raised SystemExit"),
    "raises half way": (HOOK + "yield 1 / 0", "encore_register_methods", "ZeroDivisionError"),
    "returns nothing": (HOOK + "return None", "encore_register_methods", "must return a list of MethodSpec"),
    "returns text": (HOOK + "return 'ga'", "encore_register_methods", "returned a str where a MethodSpec belongs"),
    "bad spec": (
        HOOK + "return [MethodSpec('bad', 's', 'bad:M', needs={'gold'})]", "encore_register_methods", "can only need"
    ),
    "misspelt hook": (HOOK.replace("_methods", "_method") + "return []", "encore_register_method", "did you mean"),
    "unmarked hook": ("def encore_register_methods():\n    return []", "encore_register_methods", "@encore.hookimpl"),
    "argument that no hook has": (HOOK.replace("()", "(engine)") + "return []", "import", "engine"),
    "duplicate name": (
        HOOK + "return [MethodSpec('npo', 's', 'bad:M')]", "npo", "encore-music 0.1.0 and bad 1.0"
    ),
    "command that raises": (
        HOOK.replace("methods()", "commands(app)") + "app.command('half')(print); raise OSError",
        "encore_register_commands", "OSError",
    ),
    "command that can't be read": (
        HOOK.replace("methods()", "commands(app)") + "app.command('odd')(lambda x: None)\n"
        "    @app.command('odder')\n    def f(x: int | str): ...",
        "encore_register_commands", "can't be read",
    ),
    "command that is taken": (
        HOOK.replace("methods()", "commands(app)") + "app.command('doctor')(lambda: None)",
        "encore_register_commands", "there is a command 'doctor' already",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_plugin_costs_only_itself(site, encore, fault):
    code, where, message = FAULTS[fault]
    site.add("bad", code)
    site.add("good", GOOD)
    shown = json.loads(encore("plugins", "--json", path=[site.folder]).stdout)["plugins"]
    by_name = {plugin["name"]: plugin for plugin in shown}
    (problem,) = by_name["bad"]["problems"]
    assert problem["where"] == where
    assert message in problem["message"]
    assert "\n" not in problem["message"]
    assert by_name["good"]["problems"] == by_name["builtins"]["problems"] == []

    listed = encore("methods", "--json", path=[site.folder])
    assert listed.returncode == 0
    methods = {row["name"]: row for row in json.loads(listed.stdout)["methods"]}
    assert methods["good-method"]["available"]
    assert methods["ga"]["available"]
    assert listed.stderr.count("warning:") == 1, "warned of once"
    assert listed.stderr.startswith("warning: plugin 'bad' of bad 1.0")
    assert listed.stderr.endswith("hint: encore plugins shows what is installed and what failed\n")


def test_broken_plugin_does_not_break_help(site, encore):
    for number, (code, *_) in enumerate(FAULTS.values()):
        site.add(f"bad{number}", code)
    shown = encore("--help", path=[site.folder])
    assert shown.returncode == 0
    assert "half" not in shown.stdout
    assert "doctor" in shown.stdout


def test_using_a_duplicate_name_names_both(site, encore):
    site.add("bad", FAULTS["duplicate name"][0])
    used = encore("methods", "npo", path=[site.folder])
    assert used.returncode == 1
    assert "error: more than one plugin registers the method 'npo': encore-music 0.1.0 and bad 1.0\n" in used.stderr
    assert used.stdout == ""


def test_debugging_shows_the_traceback(site, encore):
    site.add("bad", "1 / 0")
    assert "Traceback" not in encore("plugins", path=[site.folder]).stderr
    assert "Traceback" in encore("plugins", path=[site.folder], ENCORE_DEBUG="1").stderr


# ------------------------------------------------------------------------------------------------- the extension


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package without its extension and assets, to be broken at will."""
    import encore

    source = Path(encore.__file__).parent
    folder = tmp_path / "copy"
    ignore = shutil.ignore_patterns("__pycache__", "_native*.so", "assets", "csrc")
    shutil.copytree(source, folder / "encore", ignore=ignore)
    return folder


def doctor(folder: Path, **environment: str) -> dict:
    """What `encore doctor` says of the extension."""
    ran = subprocess.run(
        [sys.executable, "-m", "encore", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": str(folder), "ENCORE_CACHE": str(folder / "cache"), **environment},
        capture_output=True, text=True, timeout=120, check=True, cwd=folder,
    )  # fmt: skip
    return json.loads(ran.stdout)["extension"]


def test_extension_missing(package):
    extension = doctor(package)
    assert not extension["loaded"]
    assert extension["why"] == "it was not built at installation"


def test_extension_that_does_not_load(package):
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (package / "encore" / f"_native{suffix}").write_bytes(b"\x7fELF rubbish")
    assert "it can't be loaded (" in doctor(package)["why"]


def test_extension_switched_off(package):
    assert doctor(package, ENCORE_NATIVE="0")["why"] == "ENCORE_NATIVE=0 switches it off"
