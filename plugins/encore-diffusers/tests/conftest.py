"""Tiny pipelines in folders, clips to hear, and the `encore` command."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Before torch is imported: on a busy machine threads that wait for one another cost more than the second one gains.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from tests.tiny_pipelines import CAPTIONS, write_ace_step, write_audioldm2, write_music, write_stable_audio

from encore import plugins
from encore.api import Clip
from encore_diffusers.base import DiffusionBackend

WRITERS = {"stable-audio": write_stable_audio, "ace-step": write_ace_step, "audioldm2": write_audioldm2}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No setting of the person who runs the tests reaches them; one cache for all of them."""
    for name in list(os.environ):
        if name.startswith("ENCORE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> a folder with a pipeline of it; don't write into it."""
    root = tmp_path_factory.mktemp("pipelines")
    return {name: write(root / name) for name, write in WRITERS.items()}


@pytest.fixture(params=list(WRITERS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def loaded(folders: dict[str, Path]) -> dict[str, DiffusionBackend]:
    """Family -> a model, to be cloned."""
    return {name: plugins.backends().resolve(name).load(str(folders[name]), offline=True) for name in WRITERS}


@pytest.fixture
def backend(family: str, loaded: dict[str, DiffusionBackend]) -> DiffusionBackend:
    """A model of each family in turn."""
    model = loaded[family].clone()
    model.text_embeddings = {}
    return model


@pytest.fixture
def clips(backend: DiffusionBackend) -> list[Clip]:
    """Three clips of other lengths and other captions."""
    noise = torch.Generator().manual_seed(0)
    made = []
    for i, seconds in enumerate((0.4, 0.3, 0.36)):
        waveform = 0.1 * torch.randn(1, backend.channels, round(seconds * backend.sample_rate), generator=noise)
        made.append(Clip(f"t{i}", CAPTIONS[i], backend.encode(waveform)[0]))
    return made


@pytest.fixture(scope="session")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with WAVs, and `forget.txt`, `retain.txt` and `holdout.txt` that name them."""
    return write_music(tmp_path_factory.mktemp("music"))


class Done(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run `encore ARGUMENTS` in this process, in an empty folder: `call("forget", "--tracks", path)`."""
    from encore.cli import app

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Done:
        capfd.readouterr()
        code = app.run([str(argument) for argument in arguments])
        return Done(code, *capfd.readouterr())

    return run
