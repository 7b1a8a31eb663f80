from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.metrics.markov import MarkovBackend, clips, models
from tests.metrics.utility.fadtk_oracle import PAIRS, SINGULAR, pair

from encore import stats
from encore.api import Embedder
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.utility.embedding_distance import Samples
from encore.metrics.utility.fad import Fad, FadInf, FadTrack, FadTrackForget
from encore.metrics.utility.mmd import Mmd


class Loudness(Embedder):
    """Mean and spread of the waveform: two dimensions."""

    sample_rate = 8
    identity = "loudness/1"

    @classmethod
    def open(cls, backend):
        return cls()

    def embed(self, waveforms):
        return torch.stack([waveforms.mean(-1), waveforms.std(-1)], -1)


def evaluation(samples_per_caption: int = 4, **options) -> SharedEvaluation:
    """Models that know nothing by heart, so that no two of their plays are alike."""
    roles = {role: MarkovBackend(noise=1.0, seed=seed) for seed, role in enumerate(("base", "unlearned", "gold"))}
    return SharedEvaluation(roles, clips(), embedder=Loudness(), samples_per_caption=samples_per_caption, **options)


@pytest.mark.parametrize("metric", [Fad, FadInf, Mmd])
def test_row_names_the_embedder_and_compares_with_base(metric):
    found = {row.model: row for row in metric().measure(evaluation())}
    assert list(found) == ["unlearned", "gold", "none"]
    assert found["none"].why == (
        "not measured: the files of the retain tracks are not available, so the codec's distance is unknown"
    )
    assert found["gold"].details["embedder"] == "loudness/1"
    assert (found["gold"].n, found["gold"].set) == (12, "retain")
    assert found["gold"].low <= found["gold"].value <= found["gold"].high


def test_fad_is_that_of_the_embeddings():
    shared = evaluation()
    found = {row.model: row.value for row in Fad().measure(shared)}
    base, gold = shared.embeddings("base", "retain"), shared.embeddings("gold", "retain")
    assert base.shape == (12, 2)
    assert found["gold"] == pytest.approx(stats.frechet_distance(gold, base))


@pytest.mark.parametrize(("metric", "clips"), [(FadTrack, "retain"), (FadTrackForget, "forget")])
def test_fad_track_is_to_the_tracks_whose_captions_were_played(metric, clips):
    shared = evaluation(force=True)
    found = {row.model: row for row in metric().measure(shared)}
    assert list(found) == ["base", "unlearned", "gold"]
    assert {(row.metric, row.set, row.n) for row in found.values()} == {("fad_track", clips, 12)}
    order = np.argsort([clip.track for clip in shared.clips[clips]])
    tracks = np.repeat(shared.embeddings("audio", clips)[order], 4, 0)
    for model, row in found.items():
        assert row.value == pytest.approx(stats.frechet_distance(shared.embeddings(model, clips), tracks))


def test_fad_of_few_generations_is_refused_unless_forced():
    (row, *_) = Fad().measure(evaluation(samples_per_caption=1))
    assert row.value is None
    assert row.why == "not measured: 3 generations in 2 dimensions give mostly bias; at least 4 needed, see mmd"
    (row, *_) = Fad().measure(evaluation(samples_per_caption=1, force=True))
    assert row.value is not None
    assert "mostly bias" in row.note


@pytest.mark.parametrize("metric", [FadTrack, FadTrackForget])
def test_more_draws_add_nothing_to_few_tracks(metric):
    """Three tracks, each there four times, are three: they span two dimensions as badly as if they were there once."""
    (row, *_) = metric().measure(evaluation(samples_per_caption=4))
    assert (row.value, row.n) == (None, 12)
    assert row.why.startswith("not measured: 3 distinct sounds per side (more samples add none) in 2 dimensions give")


def test_the_codecs_floor_says_that_draws_do_not_help():
    recordings = {"retain": lambda: [torch.rand(24, generator=torch.Generator().manual_seed(i)) for i in range(3)]}
    shared = evaluation(recordings=recordings)
    for metric in (Fad, FadInf):
        floor = next(row for row in metric().measure(shared) if row.model == "none")
        assert floor.why.startswith("not measured: 3 distinct sounds per side (more samples add none) in 2 dimensions")


def test_on_forget_near_to_gold_is_better_than_near_to_the_tracks():
    shared = evaluation(force=True)
    assert {row.direction for row in FadTrackForget().measure(shared)} == {"gold"}
    assert {row.direction for row in FadTrack().measure(shared)} == {"lower"}


def test_case_D7_fad_has_its_bias_beside_it():
    shared = evaluation()
    row, unbiased = (next(row for row in metric().measure(shared) if row.model == "gold") for metric in (Fad, FadInf))
    assert row.details["bias"] == pytest.approx(row.value - unbiased.value)
    assert f"about {row.details['bias']:.2g} of it is bias of 12 generations in 2 dimensions" in row.note
    assert row.low == pytest.approx(min(unbiased.low, row.value))
    assert row.high == pytest.approx(max(unbiased.high, row.value))
    forced = next(iter(Fad().measure(evaluation(samples_per_caption=1, force=True))))
    assert (forced.low, forced.high, forced.details["bias"]) == (None, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("apart", [0.0, 1.0, 3.0])
def test_case_D7_fads_interval_covers_the_true_distance(apart):
    shared, tracks, covered = evaluation(), [str(i) for i in range(24)], []
    for seed in range(60):
        own, base = np.random.default_rng(seed).normal(size=(2, 24, 10))  # of two Gaussians whose means are `apart`
        base[:, 0] += apart
        row = Fad().compare(shared, Samples("fad", "gold", "retain", own, base, base, tracks, {}))
        covered.append(row.low <= apart**2 <= row.high)
    assert np.mean(covered) >= 0.93


def test_fad_inf_is_extrapolated_from_the_embeddings():
    shared = evaluation()
    (_, row, _) = FadInf().measure(shared)
    own, base = shared.embeddings("gold", "retain"), shared.embeddings("base", "retain")
    halves = stats.random_halves(12, seed=shared.seed)
    assert (row.metric, row.model, row.n, row.details["dim"]) == ("fad_inf", "gold", 12, 2)
    assert row.value == pytest.approx(stats.frechet_inf(own, base, halves))
    tracks = np.repeat(range(3), 4)  # four draws each
    expected = stats.jackknife_interval(stats.frechet_inf, own, base, halves, of=tracks)
    assert (row.low, row.high) == pytest.approx(expected)
    assert row.low < row.value < row.high


def test_fad_inf_of_few_generations_is_refused_also_when_forced():
    (row, *_) = FadInf().measure(evaluation(samples_per_caption=1, force=True))
    assert row.value is None
    assert "3 generations in 2 dimensions are too few to extrapolate; at least 6 needed" in row.why


def test_a_model_that_plays_the_same_has_no_distance():
    roles = models()
    shared = SharedEvaluation(
        {"base": roles["base"], "unlearned": roles["base"].clone()}, clips(), embedder=Loudness(), samples_per_caption=4
    )
    for metric in (Fad, FadInf, Mmd):
        (row, _) = metric().measure(shared)
        assert row.value == pytest.approx(0, abs=1e-12)


def test_mmd_takes_its_width_from_base():
    shared = evaluation()
    (row, *_) = Mmd().measure(shared)
    assert row.details["bandwidth"] == pytest.approx(stats.median_bandwidth(shared.embeddings("base", "retain")))


@pytest.mark.parametrize("metric", [Fad, FadInf, Mmd])
def test_without_base_or_retain_it_says_so(metric):
    roles, sets = models(), clips()
    without_base = SharedEvaluation({"unlearned": roles["unlearned"]}, sets, embedder=Loudness())
    without_retain = SharedEvaluation(roles, {"forget": sets["forget"]}, embedder=Loudness())
    for shared in (without_base, without_retain):
        (row,) = metric().measure(shared)
        assert row.value is None
        assert "base model" in row.why


def test_mmd_of_a_base_that_plays_one_thing_has_no_width():
    roles = models()
    shared = SharedEvaluation(roles, clips(), embedder=Loudness())
    shared._results["embeddings", "base", "retain"] = {"": (np.ones((3, 2)), None)}
    (row, *_) = Mmd().measure(shared)
    assert row.value is None
    assert "do not differ" in row.why


FADTK = json.loads(Path(__file__).with_name("fadtk.json").read_text())


@pytest.mark.parametrize("name", PAIRS)
def test_fad_is_that_of_fadtk(name):
    """fadtk roots Σ1 Σ2; where that is singular it loses digits, and puts sets at less than 0 from themselves."""
    x, y = pair(name)
    assert stats.frechet_distance(x, y) == pytest.approx(FADTK["fad"][name], rel=1e-5 if name in SINGULAR else 1e-9)
    assert stats.frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert (FADTK["fad_of_the_first_with_itself"][name] < -1e-8) == (name in SINGULAR)
