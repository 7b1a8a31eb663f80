"""The synthesiser: deterministic, 12 bits, onsets on the codec's frame grid."""

import dataclasses

import numpy as np
import pytest
from tools.build_assets import synth
from tools.build_assets.scores import SCORES


@pytest.mark.parametrize("score", SCORES[3:6], ids=lambda s: s.id)
def test_render_is_deterministic_and_12_bit(score):
    first = synth.render(score)
    synth.tone.cache_clear()
    synth.note.cache_clear()
    assert np.array_equal(first, synth.render(score))
    assert first.shape == (synth.SAMPLES,)
    assert first.dtype == np.int16
    assert not np.any(first % 16)
    assert 1000 < np.sqrt(np.mean(first.astype(float) ** 2)) < 6000
    assert np.abs(first).max() < 32767


def test_arrangement_fills_five_seconds():
    for score in SCORES:
        events = synth.arrange(score)
        assert min(e.frame for e in events) == 0
        assert 3.0 * 50 < max(e.frame for e in events if e.instrument != "drum") < 250


@pytest.mark.parametrize("style", synth.STYLES)
def test_every_style_adds_notes(style):
    silent = dataclasses.replace(SCORES[0], comp="none", style="none")
    played = dataclasses.replace(SCORES[0], comp="piano", style=style)
    assert len(synth.arrange(played)) > len(synth.arrange(silent))


@pytest.mark.parametrize("bpm", range(70, 180))
def test_beats_are_whole_even_frames_near_the_tempo(bpm):
    frames = synth.beat_frames(bpm)
    assert frames % 2 == 0
    assert abs(frames - 3000 / bpm) <= 1


def test_comb_is_the_recursion():
    x = np.random.default_rng(0).standard_normal(50)
    want = np.zeros(50)
    for n in range(7, 50):
        want[n] = x[n - 7] + 0.4 * want[n - 7]
    assert np.allclose(synth._comb(x, 7, 0.4), want)


def test_unknown_sounds_are_refused():
    with pytest.raises(KeyError):
        synth.tone("kazoo", 60)
    with pytest.raises(KeyError):
        synth.drum("gong")
