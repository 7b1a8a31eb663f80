"""audiocraft imports, and leaves no stand-in behind that others could take for an installed package."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from encore.errors import MissingExtraError
from encore_audiocraft.library import SHADOWED, StubModule, load


def run(code: str, *path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env={"PYTHONPATH": ":".join(map(str, path)), "PATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_audiocraft_is_here() -> None:
    """The tests of this plugin are of no use without it: they fail, and are never skipped."""
    audiocraft = load()
    assert audiocraft.__version__ == "1.3.0"
    assert load() is audiocraft is sys.modules["audiocraft"]


def test_stand_ins_are_taken_away_again_but_for_xformers() -> None:
    out = run(
        "import importlib.util, sys\nfrom encore_audiocraft.library import *\nload()\n"
        "left = [name for name, module in sys.modules.items() if isinstance(module, StubModule)]\n"
        "print(left, importlib.util.find_spec('xformers') is not None)\n"
        "from transformers.utils import is_torchaudio_available, is_spacy_available, is_librosa_available\n"
        "print(is_torchaudio_available(), is_librosa_available(), is_spacy_available())\n"
    )
    left = [] if _installed("xformers") else ["xformers", "xformers.ops"]
    found = [_installed(name) for name in ("torchaudio", "librosa", "spacy")]
    assert out.splitlines() == [f"{left} True", " ".join(map(str, found))]


def _installed(name: str) -> bool:
    return bool(list(importlib.metadata.distributions(name=name)))


def test_what_can_be_imported_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "spacy.py").write_text("REAL = True\n")
    (tmp_path / "av.py").write_text("raise OSError('its library is broken')\n")
    out = run(
        "import sys\nfrom encore_audiocraft.library import load\nload()\n"
        "used = sys.modules['audiocraft.modules.conditioners'].spacy\n"
        "print(sys.modules['spacy'].REAL, used.REAL, 'av' in sys.modules)",
        tmp_path,
    )
    assert out == "True True False\n"


def test_what_is_stood_in_for_says_so_when_it_is_used() -> None:
    stand_in = StubModule("spacy")
    with pytest.raises(MissingExtraError, match=r"audiocraft needs spacy\.Language"):
        stand_in.Language()
    with pytest.raises(AttributeError):
        _ = stand_in.__version__
    assert not [name for name in SHADOWED if isinstance(sys.modules.get(name), StubModule)]


def test_without_audiocraft_there_is_a_sentence_and_a_command() -> None:
    out = run(
        "import sys\nsys.modules['audiocraft'] = None\n"
        "from encore_audiocraft import library, INSTALL\nfrom encore.errors import MissingExtraError\n"
        "try:\n    library.load()\nexcept MissingExtraError as error:\n"
        "    print(error.message)\n    print(error.hint == INSTALL)\n"
        "print([name for name, module in sys.modules.items() if isinstance(module, library.StubModule)])"
    )
    message, hint, left = out.splitlines()
    assert message.startswith("audiocraft can't be imported")
    assert hint == "True"
    assert "spacy" not in left
