"""Tunes of sines: the same one in another key, tempo and instrument is alike, another tune is not."""

from __future__ import annotations

import numpy as np
import pytest

from encore.metrics.similarity.music_features import (
    _pooled,
    correlations,
    extract_features,
    harmony,
    intervals,
    melody,
    rhythm,
)

RATE = 16000
TUNE = [60, 62, 64, 60, 67, 65, 64, 62, 60, 67, 69, 72]
OTHER = [72, 71, 60, 63, 61, 70, 66, 74, 73, 62, 68, 61]
BEATS = [0.3, 0.3, 0.6, 0.3, 0.3, 0.6, 0.3, 0.3, 0.3, 0.3, 0.6, 0.6]


def sung(notes, beats=BEATS, *, key=0, tempo=1.0, overtones=(1.0, 0.4)):
    pieces = []
    for note, beat in zip(notes, beats, strict=True):
        time = np.arange(round(beat / tempo * RATE)) / RATE
        pitch = 440 * 2 ** ((note + key - 69) / 12)
        wave = sum(a * np.sin(2 * np.pi * pitch * (i + 1) * time) for i, a in enumerate(overtones))
        pieces.append(wave * np.exp(-2 * time) * np.minimum(1, time * 200))
    return extract_features([0.3 * np.concatenate(pieces).astype(np.float32)], RATE)[0]


@pytest.fixture(scope="module")
def tune():
    return sung(TUNE)


def test_melody_is_the_tunes_intervals(tune):
    expected = tuple(int(step) for step in np.diff(TUNE))
    assert melody([tune], [tune])[0, 0] == 1.0
    distance = 1 - melody([tune], [type(tune)(tune.chroma, tune.onsets, expected)])[0, 0]
    assert distance <= 0.2  # a note may be taken for its octave where one ends


@pytest.mark.parametrize("similarity", [harmony, melody, rhythm])
def test_another_key_tempo_and_instrument_are_alike_and_another_tune_is_not(tune, similarity):
    same = sung(TUNE, key=3, tempo=1.05, overtones=(1.0, 0.2, 0.1))
    beats = [0.6, 0.2, 0.2, 0.2, 0.6, 0.2, 0.5, 0.6, 0.2, 0.2, 0.6, 0.9]
    found = similarity([tune], [same, sung(OTHER, beats)])[0]
    assert found[0] > 0.7 > found[1] + 0.1


def test_a_tune_is_itself(tune):
    for similarity in (harmony, melody, rhythm):
        assert similarity([tune], [tune])[0, 0] == pytest.approx(1.0)


def test_a_later_beginning_is_allowed_within_half_a_second(tune):
    later = type(tune)(np.roll(np.pad(tune.chroma, ((0, 0), (0, 7))), 7, 1), tune.onsets, ())
    much_later = type(tune)(np.roll(np.pad(tune.chroma, ((0, 0), (0, 30))), 30, 1), tune.onsets, ())
    near, far = harmony([tune], [later, much_later])[0]
    assert near > 0.95 > far + 0.3


def test_silence_and_short_sounds_are_like_nothing():
    (silence,) = extract_features([np.zeros(800, dtype=np.float32)], 8000)
    assert silence.melody == ()
    assert harmony([silence], [silence])[0, 0] == melody([silence], [silence])[0, 0] == 0


def test_intervals_need_notes_that_last():
    pitches = np.full((30, 9), 0.1)
    for frame, pitch in enumerate([5, 5, 5, 9, 12, 12, 12, 5, 5]):
        pitches[pitch, frame] = 1.0
    assert intervals(pitches) == (7, -7)  # the ninth lasts a single frame
    pitches[:, 4:7] *= 0.01  # a rest
    assert intervals(pitches) == ()


def test_pooling_takes_means():
    assert _pooled(np.arange(6.0)[None], 2.0).tolist() == [[0.5, 2.5, 4.5]]


def test_clips_are_heard_side_by_side_as_alone():
    random = np.random.default_rng(0)
    audio = [random.normal(size=size).astype(np.float32) for size in (9000, 20000, 9000, 40000, 20000)]
    for one, together in zip(audio, extract_features(audio, 8000), strict=True):
        (alone,) = extract_features([one], 8000)
        np.testing.assert_allclose(together.chroma, alone.chroma, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(together.onsets, alone.onsets, rtol=1e-5, atol=1e-6)
        assert together.melody == alone.melody


def test_correlations_are_those_of_a_search():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(3, 10)), rng.normal(size=(3, 12))
    best = -1.0
    frames = round(12 / 0.94)
    for tempo in (0.94, 0.97, 1.0, 1.03, 1.06):
        at = np.linspace(0, 11, max(1, round(12 / tempo)))
        played = np.stack([np.interp(at, np.arange(12), row) for row in two])
        for key in range(3):
            for by in range(-2, 3):
                here = np.zeros((3, frames + 4))
                there = np.zeros((3, frames + 4))
                here[:, 2 : 2 + 10] = one
                there[:, 2 + by : 2 + by + played.shape[1]] = played[[(i - key) % 3 for i in range(3)]]
                cosine = (here * there).sum() / np.linalg.norm(here) / np.linalg.norm(there)
                best = max(best, cosine)
    assert correlations([one], [two], 4.0, keys=3)[0, 0] == pytest.approx(best)
