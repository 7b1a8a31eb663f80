"""Fishers on disk: what makes two of them different, and what becomes of kills, damage and folders without leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen

from encore.api import Clip
from encore.backends.musicgen import MusicgenBackend
from encore.curvature import Fisher, backend_fisher, cached_fisher
from encore.tensor_cache import CacheWarning


@pytest.fixture(scope="module")
def _tiny(tmp_path_factory: pytest.TempPathFactory) -> MusicgenBackend:
    return MusicgenBackend.load(str(write_tiny_musicgen(tmp_path_factory.mktemp("model"))), offline=True)


@pytest.fixture
def backend(_tiny: MusicgenBackend) -> MusicgenBackend:
    return _tiny.clone()


GENERATOR = torch.Generator().manual_seed(0)
CLIPS = [Clip(str(i), CAPTIONS[i % 3], torch.randint(CODES, (2, 8 + i), generator=GENERATOR)) for i in range(5)]


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def same(one: Fisher, other: Fisher) -> bool:
    return one.samples == other.samples and all(torch.equal(v, other.values[name]) for name, v in one.values.items())


@pytest.mark.parametrize("mode", ["empirical", "sampled"])
def test_it_is_computed_once(
    backend: MusicgenBackend, tmp_path: Path, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached_fisher(backend, CLIPS, tmp_path / "deep" / "fisher", mode=mode, micro_batch_size=2, seed=1)
    assert same(first, backend_fisher(backend, CLIPS, mode=mode, micro_batch_size=2, seed=1))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(backend, "logits", never)
    again = cached_fisher(backend, CLIPS, tmp_path / "deep" / "fisher", mode=mode, micro_batch_size=2, seed=1)
    assert same(first, again)
    assert len(files(tmp_path / "deep" / "fisher")) == 1


def test_whatever_changes_it_makes_another(backend: MusicgenBackend, tmp_path: Path) -> None:
    def kept(clips: list[Clip] = CLIPS, **settings: Any) -> int:
        cached_fisher(backend, clips, tmp_path, **settings)
        return len(files(tmp_path))

    assert kept() == 1
    assert kept(seed=9) == 1  # nothing is drawn
    assert kept(CLIPS[:4]) == 2
    assert kept([*CLIPS[:4], Clip("4", "another caption", CLIPS[4].codes)]) == 3
    assert kept(micro_batch_size=2) == 4
    assert kept(mode="sampled") == 5
    assert kept(mode="sampled", seed=9) == 6
    with torch.no_grad():
        next(backend.module.parameters()).add_(1e-3)
    assert kept() == 7
    next(backend.module.parameters()).requires_grad_(False)
    assert kept() == 8
    encoder = next(backend.frozen()["text_encoder"].parameters())
    before = encoder.detach().clone()
    try:
        with torch.no_grad():
            encoder.add_(1e-3)
        assert kept() == 9
    finally:
        with torch.no_grad():
            encoder.copy_(before)
    assert kept() == 9


def test_a_kill_costs_no_more_than_the_last_batch(backend: MusicgenBackend, tmp_path: Path) -> None:
    done: list[int] = []

    def killed(count: int, of: int) -> None:
        if count >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_fisher(backend, CLIPS, tmp_path, micro_batch_size=2, checkpoint_seconds=0, progress=killed)
    result = cached_fisher(backend, CLIPS, tmp_path, micro_batch_size=2, progress=lambda count, of: done.append(count))
    assert done == [5]
    assert same(result, backend_fisher(backend, CLIPS, micro_batch_size=2))


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_file_is_replaced(backend: MusicgenBackend, tmp_path: Path, damage: str) -> None:
    first = cached_fisher(backend, CLIPS, tmp_path)
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes({"flipped": data, "cut": data[: len(data) // 2], "empty": b""}[damage])
    assert same(first, cached_fisher(backend, CLIPS, tmp_path))
    assert same(first, Fisher.load(path))


def test_a_folder_that_cannot_be_made_is_said_once_and_done_without(backend: MusicgenBackend, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(CacheWarning, match="can't be written"):
        result = cached_fisher(backend, CLIPS, tmp_path / "file" / "fisher")
    assert same(result, backend_fisher(backend, CLIPS))
    assert same(result, cached_fisher(backend, CLIPS, None))
