"""Encore finds the plugin; without audiocraft it says what to install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pairs import Pair

from encore import plugins
from encore.testing import assert_conforms
from encore_audiocraft import INSTALL

WITHOUT = """
import importlib.metadata
found = importlib.metadata.distribution
def distribution(name):
    if name == "audiocraft":
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.distribution = distribution
"""


def encore(*arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path or "")}
    return subprocess.run(
        [sys.executable, "-m", "encore", *map(str, arguments)], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_backend_is_found_and_keeps_the_contract() -> None:
    backend = plugins.backends().resolve("audiocraft")
    assert backend.name == backend.spec.name == "audiocraft"
    assert [p for p in plugins.plugin_errors() if p.source.distribution == "encore-audiocraft"] == []


def test_backend_conforms(pair: Pair) -> None:
    """The contract, run: shapes, determinism, causality, curvature, saving, cloning and the rest of it."""
    assert_conforms("backend", "audiocraft", model=str(pair.audiocraft))


def test_listing_and_help_import_neither_torch_nor_audiocraft() -> None:
    code = (
        "import sys\nfrom encore.cli.app import run\n"
        "run(['backends'])\nrun(['--help'])\nrun(['convert', '--help'])\n"
        "print(sorted({'torch', 'transformers', 'audiocraft', 'omegaconf'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert "MusicGen through Meta's audiocraft" in done.stdout
    assert "Write a MusicGen in another library's format" in done.stdout


def test_without_audiocraft_it_lists_itself_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    rows = {row["name"]: row for row in json.loads(encore("backends", "--json", path=tmp_path).stdout)["backends"]}
    assert not rows["audiocraft"]["available"]
    assert INSTALL in rows["audiocraft"]["why"]
    used = encore("generate", "a flute", "--backend", "audiocraft", path=tmp_path)
    assert used.returncode == 1
    assert INSTALL in used.stderr
    assert rows["musicgen"]["available"]


def test_convert_refuses_what_it_can_before_anything_heavy_is_imported(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years")
    code = (
        "import sys\nfrom encore.cli.app import run\n"
        "print([run(['convert', *line.split(), '--to', 'audiocraft']) for line in sys.argv[1:]])\n"
        "print(sorted({'torch', 'transformers', 'audiocraft', 'omegaconf'} & set(sys.modules)))"
    )
    asked = ["tiny full", "tiny full/thesis.tex", f"{pair.audiocraft} new"]
    done = subprocess.run(
        [sys.executable, "-c", code, *asked], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines() == ["[2, 2, 3]", "[]"], done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
