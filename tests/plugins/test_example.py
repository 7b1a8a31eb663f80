"""`plugins/encore-example`, installed as anybody would install it.

Its own tests run in `make plugins`, and in `tests/cli/test_scaffold.py` under another name.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "plugins" / "encore-example"


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """The example, pip-installed into a fresh folder."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "target"), str(folder / "source")], check=True)
    return folder / "target"


def test_it_is_seen(target, encore):
    rows = {row["name"]: row for row in json.loads(encore("methods", "--json", path=[target]).stdout)["methods"]}
    hinge = rows["example-hinge"]
    assert (hinge["distribution"], hinge["version"], hinge["available"]) == ("encore-example", "0.1.0", True)
    assert hinge["needs"] == ["holdout", "retain"]
    plugins = json.loads(encore("plugins", "--json", path=[target]).stdout)["plugins"]
    assert [plugin["problems"] for plugin in plugins] == [[], []]


def test_its_options_are_shown(target, encore):
    shown = encore("methods", "example-hinge", path=[target])
    assert "margin" in shown.stdout
    assert "batch_size" in shown.stdout


@pytest.mark.slow
def test_a_model_forgets_with_it(target, encore, studio, tmp_path):
    lists = {"tracks": "forget", "retain": "retain", "holdout": "holdout"}
    flags = [word for flag, name in lists.items() for word in (f"--{flag}", studio / f"music/{name}.txt")]
    ran = encore(
        "forget", *flags, "--model", studio / "model", "--out", tmp_path / "run",
        "--method", "example-hinge", "-o", "margin=0.1", "--steps", 4, path=[target],
    )  # fmt: skip
    assert ran.returncode in (0, 4), ran.stderr  # 4: so few steps may miss the targets, and the run is there
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "encore-example" in json.dumps(recorded), "the run says whose code it ran"
    assert (tmp_path / "run" / "model").is_dir()
