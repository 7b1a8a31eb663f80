from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from encore.audio.catalog import Catalog
from encore.audio.duplicates import (
    RATE,
    THRESHOLD,
    features_of,
    find_duplicates,
    fingerprint,
    refusal,
    similarity,
    without_duplicates,
)
from encore.audio.files import file_sha256
from encore.audio.tracks import Track

from .conftest import melody

Write = Callable[..., Path]
ASSETS = Path(__file__).parents[2] / "src" / "encore" / "assets"


def track(path: Path) -> Track:
    return Track(id=path.name, path=path, caption="x", sha256=file_sha256(path))


def test_the_threshold_lies_far_above_different_pieces_of_the_embedded_music() -> None:
    songs = [one for one in Catalog.open(ASSETS).tracks() if one.meta["split"] != "background"]
    features = [fingerprint(song.path).features for song in songs]
    scores = [similarity(a, b) for i, a in enumerate(features) for b in features[:i]]
    assert len(scores) > 1_000
    assert max(scores) < THRESHOLD - 0.1


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("low.mp3", {"compression_level": 0.99}),
        ("low.ogg", {"compression_level": 0.99}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.flac", {"subtype": "PCM_S8"}),
    ],
)
def test_the_threshold_lies_far_below_one_recording_encoded_anew(
    write: Write, seed: int, name: str, how: dict[str, object]
) -> None:
    original = fingerprint(write("a.wav", seed, 5.0)).features
    assert similarity(original, fingerprint(write(name, seed, 5.0, **how)).features) > THRESHOLD + 0.15


@pytest.mark.parametrize(
    "change",
    [
        lambda x: 0.1 * x,
        lambda x: np.clip(4 * x, -0.9, 0.9),
        lambda x: x[2_345:],
        lambda x: x[: len(x) * 4 // 5],
        lambda x: np.concatenate([np.zeros(RATE, np.float32), x]),
        lambda x: x + 0.1 * x.std() * np.random.default_rng(0).standard_normal(len(x)).astype(np.float32),
        lambda x: np.concatenate([melody(9, 8.0, RATE), x, melody(10, 8.0, RATE)]),
        lambda x: soxr.resample(soxr.resample(x, RATE, 6_500), 6_500, RATE),
    ],
    ids=["quiet", "clipped", "trimmed", "cut", "padded", "noisy", "excerpt", "resampled"],
)
def test_one_recording_is_known_again(change: Callable[[np.ndarray], np.ndarray]) -> None:
    sound = melody(3, 5.0, RATE)
    assert similarity(features_of(sound), features_of(change(sound))) > THRESHOLD + 0.1


def test_similarity_is_symmetric_and_one_with_itself() -> None:
    a, b = features_of(melody(1, 3.0, RATE)), features_of(melody(2, 4.0, RATE))
    assert similarity(a, a) == pytest.approx(1, abs=1e-5)
    assert similarity(a, b) == pytest.approx(similarity(b, a))
    assert similarity(a, np.zeros_like(a)) == -1


def test_an_excerpt_of_a_long_track_is_found() -> None:
    sound = np.concatenate([melody(seed, 4.0, RATE) for seed in range(9)])
    assert features_of(sound).shape[1] > 1_024
    assert similarity(features_of(sound), features_of(sound[30 * RATE :])) > 0.9


def test_pairs_of_all_three_kinds(tmp_path: Path, write: Write) -> None:
    first, second = write("one.wav", 1, 3.0), write("two.wav", 2, 3.0)
    (tmp_path / "copy.wav").write_bytes(first.read_bytes())
    others = [tmp_path / "copy.wav", write("one.flac", 1, 3.0), write("two.mp3", 2, 3.0), write("three.wav", 3, 3.0)]
    retain = [track(path) for path in others]
    pairs = find_duplicates([track(first), track(second)], retain)
    assert [(pair.forget.id, pair.retain.id, pair.kind) for pair in pairs] == [
        ("one.wav", "copy.wav", "file"),
        ("one.wav", "one.flac", "samples"),
        ("two.wav", "two.mp3", "recording"),
    ]
    assert without_duplicates(retain, pairs) == retain[3:]
    error = refusal(pairs)
    assert error.exit_code == 3
    assert "3 tracks are" in error.message
    assert "one.wav = one.flac (same samples)" in error.message
    assert "--drop-duplicates" in error.hint


def test_a_hostile_id_is_escaped_in_the_refusal(write: Write) -> None:
    one = dataclasses.replace(track(write("a.wav", 1, 1.0)), id="a\x1b[2Jb")
    assert "\x1b" not in refusal(find_duplicates([one], [one])).message


def test_stereo_at_another_rate_is_the_same_recording(tmp_path: Path, write: Write) -> None:
    sound = soxr.resample(melody(4, 4.0), 16_000, 44_100)
    soundfile.write(tmp_path / "s.wav", np.stack([sound, 0.5 * sound], 1), 44_100)
    pairs = find_duplicates([track(write("m.wav", 4, 4.0))], [track(tmp_path / "s.wav")])
    assert [pair.kind for pair in pairs] == ["recording"]
