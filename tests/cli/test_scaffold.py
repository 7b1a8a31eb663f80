"""`encore plugins new NAME`: the example plugin is the template, and the only one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from encore.cli.scaffold import rename, template_folder, write_plugin
from encore.errors import EncoreError, UsageError

EXAMPLE = Path(__file__).resolve().parents[2] / "plugins" / "encore-example"


def files(folder):
    """What belongs to a package: neither what tools left there, nor the environment of `make plugins`."""
    found = ((path.relative_to(folder), path) for path in folder.rglob("*") if path.is_file())
    return {
        name.as_posix(): path.read_text()
        for name, path in found
        if not any(part.startswith(".") or part in ("__pycache__", "build") for part in name.parts)
        and ".egg-info" not in str(name)
    }


def test_the_template_is_the_example(tmp_path):
    assert template_folder() == EXAMPLE
    assert files(write_plugin("example", tmp_path / "out")) == files(EXAMPLE)


def test_no_trace_of_the_example_is_left(tmp_path):
    written = files(write_plugin("acme-tools", tmp_path / "out"))
    assert "src/encore_acme_tools/method.py" in written
    assert "example" not in "".join([*written, *written.values()]).lower()
    assert 'acme-tools = "encore_acme_tools"' in written["pyproject.toml"]
    for path, text in written.items():
        if path.endswith(".py"):
            compile(text, path, "exec")


@pytest.mark.parametrize(
    ("text", "renamed"),
    [
        ("encore-example", "encore-acme-tools"),
        ("from encore_example.method import", "from encore_acme_tools.method import"),
        ('name="example-hinge"', 'name="acme-tools-hinge"'),
        ('metric="example_entropy"', 'metric="acme_tools_entropy"'),
        ("counterexample", "counterexample"),
    ],
)
def test_rename(text, renamed):
    assert rename(text, "acme-tools") == renamed


def test_prefix_may_be_given(tmp_path):
    assert "encore-acme" in files(write_plugin("encore-acme", tmp_path / "out"))["pyproject.toml"]


@pytest.mark.parametrize("name", ["", "Acme", "a_b", "a--b", "-a", "../a", "a/b", "é", "1a", "a\n"])
def test_names_that_cannot_be(tmp_path, name):
    with pytest.raises(UsageError, match="can't be a plugin's name"):
        write_plugin(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "empty").mkdir()
    assert write_plugin("acme", tmp_path / "empty") == tmp_path / "empty"
    before = files(tmp_path / "empty")
    with pytest.raises(UsageError, match="exists and is not empty"):
        write_plugin("other", tmp_path / "empty")
    assert files(tmp_path / "empty") == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError):
        write_plugin("other", tmp_path / "file")


def test_nothing_half_written_is_left(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EncoreError, match="can't be written"):
        write_plugin("acme", tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_what_it_writes_installs_and_passes_its_own_tests(tmp_path, encore):
    """But for its contract, which is the example's: `make plugins` checks that, and a name changes nothing in it."""
    folder = write_plugin("acme-tools", tmp_path / "plugin")
    target = tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(folder)], check=True, capture_output=True)
    assert "acme-tools-hinge" in encore("methods", path=[target]).stdout
    assert "acme_tools_entropy" in encore("metrics", path=[target]).stdout
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not keeps_the_contract"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(target)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("name", ["encore", "encore-music", "audiocraft"])
def test_a_name_of_encores_own_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="is a name of Encore's own"):
        write_plugin(name, tmp_path / "out")
