"""Against greedy decoding from every prompt length, on a Markov model and on a MusicGen with its delay pattern."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.metrics.markov import MarkovBackend, melody
from tests.tiny_model import CAPTIONS, write_tiny_musicgen

from encore.api import Backend, Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.memorization.extraction_strength import ExtractionStrength, exact_suffix


def by_decoding(backend: Backend, clip: Clip) -> float:
    """1 - k/T, k the first of 0, 1, 2 … frames of prompt after which the decoded rest is the track's."""
    frames = clip.codes.shape[-1]
    predicted = backend.token_mask(Batch.of([clip]))[0]
    for k in range(frames):
        prompt = clip.codes[None, :, :k] if k else None
        played = backend.generate(
            [clip.caption], seconds=frames / backend.frame_rate, prompt=prompt, temperature=0.0, guidance=1.0
        )[0]
        if bool(((played == clip.codes) | ~predicted)[:, k:].all()):
            return 1 - k / frames
    return 0.0


def measured(backend: Backend, clips: list[Clip], name: str = "extraction_strength") -> dict[str, float]:
    evaluation = SharedEvaluation({"base": backend}, {"forget": clips}, embedder=None)
    return next(r.per_track for r in ExtractionStrength().measure(evaluation) if (r.metric, r.set) == (name, "forget"))


@pytest.fixture(scope="module")
def musicgen(tmp_path_factory):
    return MusicgenBackend.load(str(write_tiny_musicgen(tmp_path_factory.mktemp("tiny"), seed=3)))


def test_it_is_what_greedy_decoding_gives_on_musicgen(musicgen):
    frames, clips = 24, []
    random = torch.randint(0, 32, (3, 2, frames), generator=torch.Generator().manual_seed(0))
    for i, known in enumerate((1, 9, 20)):  # the model's own playing after a random start of so many frames
        codes = musicgen.generate(
            [CAPTIONS[i]], seconds=frames / musicgen.frame_rate, prompt=random[i : i + 1, :, :known], temperature=0.0,
            guidance=1.0,
        )[0]  # fmt: skip
        clips.append(Clip(f"known{known}", CAPTIONS[i], codes))
    clips.append(Clip("random", CAPTIONS[0], random[0]))
    expected = {clip.track: by_decoding(musicgen, clip) for clip in clips}
    assert expected["known9"] >= 1 - 9 / frames
    assert measured(musicgen, clips) == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 200))
def test_it_is_what_greedy_decoding_gives_on_a_markov_chain(first, second, seed):
    backend = MarkovBackend({1: 2.0}, noise=1.0, seed=seed)
    codes = melody(1, 10)
    codes[0, first] = (codes[0, first] + 1) % 11
    codes[1, second] = (codes[1, second] + 1) % 11
    clip = Clip("t", "step 1", codes)
    assert measured(backend, [clip]) == pytest.approx({"t": by_decoding(backend, clip)})


def test_the_first_codebook_alone_is_never_below_all_of_them():
    backend = MarkovBackend({1: 6.0})
    codes = melody(1, 10)
    codes[1, 7] = 0
    clip = Clip("t", "step 1", codes)
    assert measured(backend, [clip]) == pytest.approx({"t": 0.1})  # frame 8 follows from a wrong past too
    assert measured(backend, [clip], "extraction_strength_codebook_0") == {"t": 1.0}


def test_of_a_tracks_windows_the_best_counts():
    song = [Clip("t", "step 1", melody(step, 10)) for step in (3, 1, 5)]
    assert measured(MarkovBackend({1: 6.0}), song) == {"t": 1.0}


def test_exact_suffix():
    codes = torch.tensor([[1, 2, 3, 4]])
    assert exact_suffix(codes, codes) == 4
    assert exact_suffix(torch.tensor([[1, 0, 3, 4]]), codes) == 2
    assert exact_suffix(torch.tensor([[1, 2, 3, 0]]), codes) == 0
    assert exact_suffix(torch.tensor([[1, 2, 3, -1]]), codes) == 4  # not predicted: nothing to get wrong
