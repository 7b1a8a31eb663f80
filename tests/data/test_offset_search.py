"""The search for what a model knows of a longer track, on the embedded model and masters made of its music."""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from encore import assets
from encore.backends.musicgen import MusicgenBackend
from encore.data import offset_search
from encore.data.encode import cut
from encore.data.offset_search import OffsetSearch, generations, locate, most_gain
from encore.data.tracks import Piece

RATE = 16_000


@functools.cache
def model() -> MusicgenBackend:
    return MusicgenBackend.load("tiny")


@functools.cache
def listed() -> dict[str, dict[str, str]]:
    return {track["id"]: track for track in map(json.loads, assets.CATALOG.read_text().splitlines())}


def audio(name: str) -> Tensor:
    return torch.from_numpy(soundfile.read(assets.FOLDER / listed()[name]["file_name"], dtype="float32")[0])


def held_out(seconds: float) -> Tensor:
    names = [name for name, track in listed().items() if track["split"] == "holdout"]
    return torch.cat([audio(name) for name in names])[: round(seconds * RATE)]


@functools.cache
def generated() -> tuple[str, Tensor]:
    """The caption of ode_to_joy, which all masters are listed with, and what it generates."""
    caption = listed()["ode_to_joy"]["caption"]
    return caption, generations(model(), [caption])[caption]


def search(samples: Tensor) -> list[Piece]:
    caption, generation = generated()
    return OffsetSearch(model(), samples[None], caption, [generation]).pieces()


def test_case_D15_an_excerpt_between_samples_is_found_by_what_its_caption_generates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(offset_search, "MOST_PROBES", 1)
    before = held_out(2.347)
    master = torch.cat([before, audio("ode_to_joy"), held_out(3.0)])
    shifted = cut(master[None], 100.3125, len(master) - 200)[0]  # as of a master at another rate
    (piece,) = search(shifted)
    assert piece.start == pytest.approx(len(before) - 100.3125, abs=0.07)
    assert piece.samples / RATE == pytest.approx(5, abs=0.1)
    assert piece.nll < 0.6
    assert piece.grid_nll is not None
    assert piece.grid_nll > 4


def test_case_D15_an_excerpt_under_another_caption_is_found_by_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offset_search, "MOST_PROBES", 6 * 20)  # every 16th sample of a frame
    monkeypatch.setattr(offset_search, "CANDIDATES", 4)
    before = held_out(3.0)[: 320 * 129 + 16 * 7]
    master = torch.cat([before, audio("swan_lake"), held_out(4.0)])
    (piece,) = search(master)
    assert piece.start == len(before)
    assert piece.nll < 0.2


def test_case_D15_nothing_is_claimed_of_held_out_music_nor_of_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offset_search, "MOST_PROBES", 6 * 20)
    silent = torch.cat([held_out(5.0), torch.zeros(3 * RATE), held_out(2.5)])
    assert not search(silent)


def test_a_part_of_a_window_that_is_known_as_it_is_cut_is_found() -> None:
    master = torch.cat([audio("swan_lake"), held_out(4.0)])
    (piece,) = search(master)
    assert piece.start == 0
    assert piece.nll < 0.1
    assert piece.samples / RATE == pytest.approx(5, abs=0.1)


def test_a_cut_between_samples_is_that_of_the_continuous_sound() -> None:
    time = np.arange(2000) / RATE

    def sound(seconds: np.ndarray) -> Tensor:
        return torch.from_numpy(np.sin(2 * np.pi * 440 * seconds) + 0.3 * np.sin(2 * np.pi * 3000 * seconds)).float()

    samples = sound(time)[None]
    for start in (500.0, 700.3125, 999.5):
        expected = sound((start + np.arange(400)) / RATE)
        torch.testing.assert_close(cut(samples, start, 400)[0], expected, rtol=0, atol=0.02)
    assert torch.equal(cut(samples, 500.0, 400), samples[:, 500:900])


def test_a_piece_is_located_by_its_highest_normalised_correlation() -> None:
    draw = torch.Generator().manual_seed(0)
    samples = torch.randn(5000, generator=draw)
    samples[:1500] *= 20  # loud, and no copy
    pieces = torch.stack([0.1 * samples[3217:3617], samples[40:440]]) + 0.02 * torch.randn(2, 400, generator=draw)
    for block in (700, 10_000):
        assert locate(pieces, samples, block) == pytest.approx([3217, 40], abs=0.2)
    between = cut(samples[None], 2600.25, 400)
    assert locate(between, samples, 10_000)[0] == pytest.approx(2600.25, abs=0.15)
    assert locate(pieces, samples[:399], 700) == [0, 0]


def test_the_part_of_the_highest_sum_is_that_of_all_parts() -> None:
    for seed in range(20):
        gains = torch.randn(15, generator=torch.Generator().manual_seed(seed))
        first, last, gain = most_gain(gains)
        every = [float(gains[i:j].sum()) for i in range(16) for j in range(i, 16)]
        assert math.isclose(gain, max(every), abs_tol=1e-5)
        assert math.isclose(gain, float(gains[first:last].sum()), abs_tol=1e-5)
