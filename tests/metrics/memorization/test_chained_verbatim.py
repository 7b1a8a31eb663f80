from __future__ import annotations

import random

import pytest
import torch
from tests.metrics import fakes
from tests.metrics.markov import RATE, MarkovBackend, models, track
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen

from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.memorization.chained_verbatim import KEPT, ChainedVerbatim
from encore.results.targets import summary

WINDOW = 20


@pytest.fixture(autouse=True)
def short_windows(monkeypatch):
    monkeypatch.setattr(MarkovBackend, "max_frames", WINDOW)


def windows(*lengths: int) -> list[Clip]:
    """The melodies of steps 1 and 2 in windows of these lengths."""
    cut = [(track(step, sum(lengths)), track(step, sum(lengths)).codes.split(lengths, -1)) for step in (1, 2)]
    return [Clip(whole.track, whole.caption, codes) for whole, parts in cut for codes in parts]


def rows(shared):
    return {row.model: row for row in ChainedVerbatim().measure(shared)}


def test_a_model_that_remembers_follows_for_three_windows_and_gold_does_not():
    shared = SharedEvaluation(models(), {"forget": windows(20, 20, 20, 20)}, embedder=None)
    found = rows(shared)
    assert {role: row.value for role, row in found.items()} == {"base": 1.0, "unlearned": 0.0, "gold": 0.0}
    assert found["base"].details["followed_seconds"] == {"track01": 40 / RATE, "track02": 40 / RATE}
    assert found["gold"].details["followed_seconds"] == {"track01": 0.0, "track02": 0.0}


def test_a_chain_gives_what_one_long_generation_gives_a_model_without_positions(monkeypatch):
    """A Markov chain depends on the last code alone, wherever it is cut."""
    asked = []
    generate = MarkovBackend.generate

    def recorded(self, captions, *, prompt=None, **settings):
        asked.append(prompt)
        return generate(self, captions, prompt=prompt, **settings)

    monkeypatch.setattr(MarkovBackend, "generate", recorded)
    (row,) = rows(
        SharedEvaluation({"base": MarkovBackend(noise=1.0)}, {"forget": windows(20, 9)}, embedder=None)
    ).values()
    assert [prompt.shape[-1] for prompt in asked] == [round(RATE), round(KEPT * WINDOW)]
    whole = generate(
        MarkovBackend(noise=1.0), ["step 1", "step 2"], seconds=32 / RATE, prompt=asked[0], temperature=0.0
    )
    assert torch.equal(asked[1], whole[..., WINDOW - round(KEPT * WINDOW) : WINDOW])
    assert row.n == 2


@pytest.mark.slow
def test_a_transformer_that_was_trained_on_random_crops_follows_its_own_music(tmp_path, monkeypatch):
    """As MusicGen is trained. A prompt of .1 s and passages of .2 s, for windows of .6 s."""
    monkeypatch.setattr("encore.metrics.memorization.chained_verbatim.PROMPT_SECONDS", 0.1)
    monkeypatch.setattr("encore.metrics.memorization.chained_verbatim.PASSAGE_SECONDS", 0.2)
    gold = MusicgenBackend.load(str(write_tiny_musicgen(tmp_path, positions=61)))
    base, window = gold.clone(), gold.max_frames
    codes = torch.randint(CODES, (2, 3 * window), generator=torch.Generator().manual_seed(1))
    optimizer, crops = torch.optim.Adam(base.module.parameters(), lr=0.01), random.Random(0)
    for _ in range(300):
        starts = [0, 0, *(crops.randrange(2 * window + 1) for _ in range(14))]
        clips = [Clip("t", CAPTIONS[0], codes[:, start : start + window]) for start in starts]
        optimizer.zero_grad()
        base.losses(Batch.of(clips)).mean().backward()
        optimizer.step()
    clips = [Clip("t", CAPTIONS[0], part) for part in codes.split(window, -1)]
    found = rows(SharedEvaluation({"base": base, "gold": gold}, {"forget": clips}, embedder=None))
    assert {role: row.value for role, row in found.items()} == {"base": 1.0, "gold": 0.0}
    assert found["base"].details["followed_seconds"] == {"t": 1.0}


def test_tracks_of_one_window_are_not_measured():
    (row,) = rows(SharedEvaluation({"base": MarkovBackend()}, {"forget": windows(20, 5)}, embedder=None)).values()
    assert row.why == "not measured: no forget track is 2 s longer than one window of the model"


def test_its_fake_is_caught():
    shared = SharedEvaluation(models(), {"forget": windows(20, 20)}, embedder=None)
    gate, make = fakes.OTHERS["follows_itself"]
    fake = make(shared.models["gold"], fakes.Tracks.of(shared), shared)
    found = list(ChainedVerbatim().measure(shared.derive(models={**shared.models, "unlearned": fake})))
    assert [f"{line.metric} {line.set}" for line in summary(found) if line.met is False] == [gate]
