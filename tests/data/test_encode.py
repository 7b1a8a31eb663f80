"""From files to clips: windows, the cache, and what it is keyed by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from encore.backends.musicgen import MusicgenBackend
from encore.data.decode import load
from encore.data.encode import TrackEncoder
from encore.data.track_list import read_list
from encore.data.tracks import Track
from encore.errors import InputError
from encore.tensor_cache import TensorCache


@pytest.fixture
def tracks(studio: Path) -> tuple[Track, ...]:
    return read_list(studio / "music/forget.txt").tracks


def test_every_window_of_a_long_track_is_a_clip(
    backend: MusicgenBackend, tracks: tuple[Track, ...], tmp_path: Path
) -> None:
    one, two, long = TrackEncoder(backend, TensorCache(tmp_path)).encode(tracks)
    assert (len(one.clips), len(two.clips), len(long.clips)) == (1, 1, 3)
    assert backend.max_frames == 59
    assert [clip.codes.shape[-1] for clip in long.clips] == [59, 59, 52]
    assert {clip.track for clip in long.clips} == {"long.wav"}
    assert long.seconds == pytest.approx(1.7)
    samples = torch.from_numpy(load(tracks[2].path, sample_rate=8000).samples)
    for i, clip in enumerate(long.clips):
        piece = samples[:, i * 59 * 80 : (i + 1) * 59 * 80]
        assert torch.equal(clip.codes, backend.encode(piece[None])[0])
        assert clip.codes.dtype == torch.int64


def test_a_last_window_too_short_to_add_anything_is_left_out(
    backend: MusicgenBackend, tracks: tuple[Track, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encore.data.encode.MIN_WINDOW_SECONDS", 0.55)
    assert [len(heard.clips) for heard in TrackEncoder(backend, TensorCache(tmp_path)).encode(tracks)] == [1, 1, 2]


def test_nothing_is_computed_twice(
    backend: MusicgenBackend, tracks: tuple[Track, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.text_embeddings = {}
    first = TrackEncoder(backend, TensorCache(tmp_path)).encode(tracks)
    states = dict(backend.text_embeddings)

    def never(*_: object) -> None:
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(backend, "encode", never)
    monkeypatch.setattr(backend, "encode_text", never)
    backend.text_embeddings = {}
    again = TrackEncoder(backend, TensorCache(tmp_path)).encode(tracks)
    for one, other in zip(first, again, strict=True):
        assert one.pcm_sha256 == other.pcm_sha256
        assert all(torch.equal(a.codes, b.codes) for a, b in zip(one.clips, other.clips, strict=True))
    assert states.keys() == backend.text_embeddings.keys() == {track.caption for track in tracks}
    assert all(torch.equal(states[caption], backend.text_embeddings[caption]) for caption in states)


@pytest.mark.parametrize(
    "change",
    [
        lambda backend: setattr(backend, "max_frames", 30),
        lambda backend: next(backend.frozen()["codec"].parameters()).data.add_(1e-3),
    ],
    ids=["another window", "another codec"],
)
def test_the_cache_is_keyed_by_what_codes_depend_on(
    tiny_folder: Path, tracks: tuple[Track, ...], tmp_path: Path, change: Callable[[MusicgenBackend], None]
) -> None:
    backend = MusicgenBackend.load(str(tiny_folder), offline=True)
    before = TrackEncoder(backend, TensorCache(tmp_path)).encode(tracks[:1])[0]
    change(backend)
    after = TrackEncoder(backend, TensorCache(tmp_path)).encode(tracks[:1])[0]
    fresh = TrackEncoder(backend, TensorCache(tmp_path / "empty")).encode(tracks[:1])[0]
    assert len(after.clips) == len(fresh.clips)
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(after.clips, fresh.clips, strict=True))
    assert before.pcm_sha256 == after.pcm_sha256


def test_progress_and_a_track_too_short(
    backend: MusicgenBackend, tracks: tuple[Track, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    TrackEncoder(backend, TensorCache(tmp_path)).encode(tracks, lambda done, of: told.append((done, of)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    monkeypatch.setattr(backend, "encode", lambda piece: torch.zeros(1, 2, 2))
    with pytest.raises(InputError, match="too short for the model"):
        TrackEncoder(backend, TensorCache(tmp_path / "other")).encode(tracks[:1])


def test_case_B11_a_second_run_decodes_and_encodes_nothing(
    backend: MusicgenBackend, tracks: tuple[Track, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TrackEncoder(backend, TensorCache(tmp_path)).encode(tracks)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a file was decoded")

    monkeypatch.setattr("encore.data.file_info.load", never)
    monkeypatch.setattr(backend, "encode", never)
    moved = [replace(track, path=tmp_path / "gone") for track in tracks]  # known by content, wherever it lies
    for one, other in zip(first, TrackEncoder(backend, TensorCache(tmp_path)).encode(moved), strict=True):
        assert (one.pcm_sha256, one.seconds) == (other.pcm_sha256, other.seconds)
        assert all(torch.equal(a.codes, b.codes) for a, b in zip(one.clips, other.clips, strict=True))
