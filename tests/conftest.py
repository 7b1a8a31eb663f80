"""What many tests need: a clean environment, plugins that look installed, and the `encore` command as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

# Before torch is imported, here and in the processes that tests start: on a busy machine, threads of OpenMP that wait
# for one another by spinning make generation many times slower, and the tests' models are too small to need a second.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

# What Python compiles is kept, whatever the environment says: a process that compiles torch again takes twice as long
# to start, and tests start hundreds.
os.environ["PYTHONDONTWRITEBYTECODE"] = ""

import pytest

from encore import plugins

if TYPE_CHECKING:
    from encore.backends.musicgen import MusicgenBackend
    from encore.unlearn.engine import Clips

sys.dont_write_bytecode = False

# A shell starts its background jobs with SIGINT ignored; what is tested here is a process that is not one.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests reaches them."""
    for name in list(os.environ):
        if name.startswith("ENCORE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def quick_compiler(tmp_path: Path) -> str:
    """The C++ compiler without optimisation, whatever its flags say: for tests of building, not of what is built."""
    script = tmp_path / "compiler" / "c++"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\nexec c++ "$@" -O0\n')
    script.chmod(0o755)
    return str(script)


class Installer:
    """Makes modules look installed: a folder on the path with a `.dist-info` beside each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def add(self, name: str, code: str, *, version: str = "1.0", files: Mapping[str, str] | None = None) -> None:
        """Install distribution `name`, whose entry point `name` is the module of that name with `code` in it."""
        module = name.replace("-", "_")
        (self.folder / f"{module}.py").write_text(code)
        for path, text in (files or {}).items():
            (self.folder / path).write_text(text)
        info = self.folder / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nReadme\n")
        (info / "entry_points.txt").write_text(f"[encore]\n{name} = {module}\n")


@pytest.fixture
def site(tmp_path: Path) -> Installer:
    """A place to install plugins to; put `site.folder` on PYTHONPATH of a process, or use `installed`."""
    return Installer(tmp_path / "site")


@pytest.fixture
def installed(site: Installer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    """A place to install plugins to that this process sees; what it imported from there is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(site.folder))
    before = set(sys.modules)
    plugins.reset()
    yield site
    plugins.reset()
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(str(sys.modules[name].__file__)).parent == site.folder:
            del sys.modules[name]


EncoreCommand = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def encore(tmp_path: Path) -> EncoreCommand:
    """Run `encore ARGUMENTS` as a process of its own: `encore("methods", "--json", path=[site.folder])`."""

    def run(
        *arguments: object, path: tuple[Path, ...] | list[Path] = (), timeout: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "encore", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


# ------------------------------------------------------------------------------------- a model and music to work on


class Done(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


def no_evaluation_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, who asks the cache for what an evaluation has kept fails."""
    from encore.tensor_cache import TensorCache

    get = TensorCache.get

    def asked(cache: TensorCache, key: tuple[str, ...]) -> object:
        assert key[0] != "evaluation"
        return get(cache, key)

    monkeypatch.setattr(TensorCache, "get", asked)


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `encore ARGUMENTS` in this process, which has torch loaded already: `call("forget", "--tracks", path)`."""
    from encore.cli import app

    def run(*arguments: object) -> Done:
        capfd.readouterr()
        code = app.run([str(argument) for argument in arguments])
        return Done(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def _studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_model import write_studio

    return write_studio(tmp_path_factory.mktemp("studio"))


@pytest.fixture
def studio(_studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny `model`, `music/` and lists (see `tiny_model.write_studio`); don't write into it.

    The working folder is an empty one, and the cache is the tests' own.
    """
    monkeypatch.setenv("ENCORE_CACHE", str(_studio / "cache"))
    monkeypatch.chdir(tmp_path)
    return _studio


@pytest.fixture(scope="session")
def embedded_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for the slow tests of the embedded model: its catalogue is encoded once for all of them."""
    return tmp_path_factory.mktemp("embedded-cache")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_model import write_tiny_musicgen

    return write_tiny_musicgen(tmp_path_factory.mktemp("tiny"), dropout=0.1)


@pytest.fixture(scope="session")
def _tiny(tiny_folder: Path) -> MusicgenBackend:
    from encore.backends.musicgen import MusicgenBackend

    return MusicgenBackend.load(str(tiny_folder), offline=True)


@pytest.fixture
def backend(_tiny: MusicgenBackend) -> MusicgenBackend:
    """A backend with weights of its own."""
    return _tiny.clone()


@pytest.fixture(scope="session")
def clips() -> Clips:
    """5 forget, 7 retain, 4 holdout clips of random codes and of several lengths."""
    import torch
    from tests.tiny_model import CAPTIONS, CODES

    from encore.api import Clip
    from encore.unlearn.engine import Clips

    generator = torch.Generator().manual_seed(0)
    made = [
        Clip(f"t{i}", CAPTIONS[i % 3], torch.randint(CODES, (2, 12 + i % 5), generator=generator)) for i in range(16)
    ]
    return Clips(made[:5], made[5:12], made[12:])
