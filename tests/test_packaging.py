"""What is built and installed: with a compiler, without one, without torch; and what the wheel carries."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
OFFLINE = ["--no-deps", "--no-build-isolation", "--no-index"]


def test_setup_py_is_short():
    assert len((ROOT / "setup.py").read_text().splitlines()) < 80


def test_constraints_fit_what_is_accepted():
    """Every dependency is pinned, to a version that pyproject accepts."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["dev"], *extras["native"], *extras["report"]]:
        requirement = Requirement(text)
        assert requirement.specifier, f"{text} has no floor"
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), text


def test_imported_packages_are_declared():
    """Nothing is imported at the top of a module that a plain installation lacks."""
    import ast
    import re

    names = [re.split(r"[<>=!~ ]", text)[0].replace("-", "_") for text in PROJECT["dependencies"]]
    declared = {"encore", *sys.stdlib_module_names, *names}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
                assert {name.partition(".")[0] for name in names} <= declared, path


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what the build reads, so that building leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "build", ".*")
    for name in ("src", "csrc", "plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def wheel(checkout: Path, out: Path, **environment: str) -> Path:
    """Build the wheel as pip does, from nothing."""
    shutil.rmtree(checkout / "build", ignore_errors=True)
    ran = subprocess.run(
        [*PIP, "wheel", "-q", *OFFLINE, "-w", str(out), str(checkout)],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (built,) = out.glob("encore_music-*.whl")
    return built


def install(built: Path, target: Path) -> None:
    subprocess.run([*PIP, "install", "-q", *OFFLINE, "--target", str(target), str(built)], check=True)


@pytest.fixture(scope="module")
def pure(checkout, tmp_path_factory):
    """The wheel without the extension."""
    return wheel(checkout, tmp_path_factory.mktemp("wheels"), ENCORE_NATIVE="0")


@pytest.mark.slow
def test_wheel_carries_everything(pure):
    with zipfile.ZipFile(pure) as archive:
        names = set(archive.namelist())
    assert {"encore/py.typed", "encore/_native.pyi", "encore/csrc/binding.cpp", "encore/csrc/cpu/tile.h"} <= names
    assert {"encore/template/pyproject.toml", "encore/template/src/encore_example/method.py"} <= names
    package = ROOT / "src" / "encore"
    for part in ("assets", "report"):
        data = {p for p in (package / part).rglob("*") if p.is_file() and p.suffix not in (".pyc", ".py")}
        assert {f"encore/{p.relative_to(package).as_posix()}" for p in data} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".so"))]
    assert pure.stat().st_size < 26_000_000
    assert pure.name.endswith("-py3-none-any.whl"), "nothing was compiled, so it fits everywhere"


@pytest.mark.slow
def test_wheel_works_where_it_is_installed(pure, tmp_path):
    """Also away from the repository: the sources and the template come along."""
    install(pure, tmp_path / "target")
    code = (
        "from pathlib import Path\nimport encore\nfrom encore.ops import native\n"
        "from encore.cli.scaffold import template_folder\n"
        "package = Path(encore.__file__).parent\n"
        "print(package.parent.name, native.sources() == package / 'csrc', template_folder() == package / 'template')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "target")}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "target True True\n"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")
def test_extension_is_built_ahead_of_time(checkout, tmp_path, quick_compiler):
    built = wheel(checkout, tmp_path, CC=quick_compiler, CXX=quick_compiler)
    assert "-cp311-abi3-" in built.name, "one library for every Python from 3.11 on"
    with zipfile.ZipFile(built) as archive:
        assert "encore/_native.abi3.so" in archive.namelist()


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["/bin/false", "no-such-compiler"])
def test_without_a_compiler_it_still_installs(checkout, tmp_path, compiler):
    install(wheel(checkout, tmp_path / "wheels", CC=compiler, CXX=compiler), tmp_path / "target")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "target"), "ENCORE_CACHE": str(tmp_path / "cache")}
    ran = subprocess.run(
        [sys.executable, "-m", "encore", "doctor"], env=environment, capture_output=True, text=True, check=True
    )
    assert "not loaded: it was not built at installation; PyTorch is used instead" in ran.stdout


@pytest.mark.slow
def test_without_torch_at_build_time_nothing_is_built(checkout, tmp_path):
    """What build isolation does: torch can't be imported, so that nothing is compiled and nothing is downloaded."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "torch.py").write_text("raise ImportError('not in the build environment')")
    assert wheel(checkout, tmp_path / "wheels", PYTHONPATH=str(blocked)).name.endswith("-py3-none-any.whl")
    assert "torch" not in "".join(tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"])
