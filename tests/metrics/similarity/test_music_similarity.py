from __future__ import annotations

import sys
from types import SimpleNamespace

import acoustid
import numpy as np
import pytest
import torch
from tests.latent_model import LatentBackend, latent_clips
from tests.metrics.markov import MarkovBackend, clips, melody, models
from tests.metrics.utility.test_fad import Loudness
from tests.tiny_model import CAPTIONS, write_tiny_musicgen

from encore.api import Clip
from encore.backends.musicgen import MusicgenBackend
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.measure import measure
from encore.metrics.memorization.generations import caption_generations
from encore.metrics.similarity.music_similarity import (
    CodeSimilarity,
    EmbeddingSimilarity,
    FingerprintSimilarity,
    MusicSimilarity,
    _segments,
    chance_threshold,
)
from encore.metrics.similarity.sequences import bleu


def rows(metric, shared):
    return {(row.metric, row.model): row for row in metric().measure(shared)}


@pytest.fixture
def shared():
    return SharedEvaluation(models(), clips(frames=40), embedder=Loudness())


def test_a_model_that_plays_the_tracks_is_named_and_gold_is_not(shared):
    found = rows(CodeSimilarity, shared)
    assert found["similarity_bleu", "base"].value > 0.9 > found["similarity_bleu", "gold"].value
    assert found["similarity_edit_flagged", "base"].value == 1
    assert found["similarity_edit_flagged", "base"].details["flagged"] == ["track01", "track02", "track03"]
    assert found["similarity_edit", "base"].details["rank"] == {"track01": 1, "track02": 1, "track03": 1}
    assert found["similarity_edit", "base"].details["of"] == 6
    assert found["similarity_edit_flagged", "gold"].value < 1


def test_a_caption_is_asked_in_several_ways(shared):
    asked = caption_generations(shared, "base", "forget")
    assert [g.variant for g in asked if g.track == "track02"] == [
        "sample 1",
        "sample 2",
        "sample 3",
        "short",
        "greedy",
    ]
    held_out = [g.variant for g in caption_generations(shared, "base", "holdout") if g.track == "track07"]
    assert held_out == ["sample 1", "sample 2", "sample 3", "short", "greedy"]
    assert caption_generations(shared, "base", "forget") is asked
    greedy = [g.codes for g in asked if g.variant == "greedy"]
    for codes, continued in zip(greedy, shared.continuations("base", "forget", 0), strict=True):
        assert torch.equal(codes, continued)


def test_an_evaluation_of_several_draws_asks_as_many_times_more():
    once, twice = (
        caption_generations(
            SharedEvaluation(models(), clips(frames=40), embedder=Loudness(), samples_per_caption=samples_per_caption),
            "base",
            "forget",
        )
        for samples_per_caption in (1, 2)
    )
    asked = [(g.track, g.variant) for g in once if g.variant != "greedy"]
    greedy = [(g.track, g.variant) for g in once if g.variant == "greedy"]
    assert [(g.track, g.variant) for g in twice] == [one for one in asked for _ in range(2)] + greedy


def test_figures_are_the_best_of_a_captions_own_plays_and_the_threshold_that_of_holdout(shared):
    found = rows(CodeSimilarity, shared)["similarity_bleu", "unlearned"]
    asked = caption_generations(shared, "unlearned", "forget")
    codes = {clip.track: clip.codes[0].tolist() for name in ("forget", "holdout") for clip in shared.clips[name]}
    best = {
        track: max(bleu(g.codes[0].tolist(), codes[track]) for g in asked if g.track == track)
        for track in ("track01", "track02", "track03")
    }
    assert found.per_track == pytest.approx(best)
    chance = [bleu(g.codes[0].tolist(), codes[g.track]) for g in caption_generations(shared, "unlearned", "holdout")]
    assert found.details["threshold"] == pytest.approx(max(chance))  # of three tracks no other level is safe
    assert (found.details["holdout_tracks"], found.details["holdout_pairs"]) == (3, 15)
    assert found.details["chance"] == 0.25
    named = rows(CodeSimilarity, shared)["similarity_bleu_flagged", "unlearned"]
    assert "by chance about 0.8 of 3 tracks would be flagged" in named.note
    for track, _, value in found.details["above"]:
        assert value > found.details["threshold"]
        assert value <= best[track] + 1e-9


def test_a_track_that_nobody_heard_is_named_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    for holdout, expected in ((10, 1 / 11), (150, 0.01)):
        values = random.random((4000, holdout + 1))
        levels = [chance_threshold(row[:-1]) for row in values]
        assert all(0 < chance == levels[0][1] <= expected for _, chance in levels)
        named = np.mean([row[-1] > threshold for row, (threshold, _) in zip(values, levels, strict=True)])
        assert named == pytest.approx(levels[0][1], abs=4 * np.sqrt(expected / 4000))


def test_windows_of_a_track_are_one_track():
    sets = clips(frames=20)
    sets["forget"].append(Clip("track01", "step 1", melody(4, 20)))
    shared = SharedEvaluation({"base": models()["base"]}, sets, embedder=None)
    row = rows(CodeSimilarity, shared)["similarity_edit", "base"]
    assert row.n == 3
    assert row.per_track["track01"] == pytest.approx(1.0)


def test_a_long_track_is_compared_piece_by_piece(monkeypatch):
    """What is played is the second half of the track: it is found there."""
    long = Clip("long", "step 1", torch.cat([melody(3, 40), melody(1, 40)], 1))
    sets = {"forget": [long], "holdout": [Clip("h", "step 7", melody(7, 80))]}
    monkeypatch.setattr("encore.evaluate.evaluation.GENERATION_SECONDS", 10.0)  # 40 frames
    monkeypatch.setattr("encore.evaluate.evaluation.CONTINUATION_FRAMES", 40)
    shared = SharedEvaluation({"base": MarkovBackend({1: 9.0})}, sets, embedder=None)
    assert rows(CodeSimilarity, shared)["similarity_edit", "base"].value == pytest.approx(1.0)
    assert [piece.codes.shape[-1] for piece in _segments(sets["forget"], 30)] == [30, 30, 20]
    assert [piece.codes.shape[-1] for piece in _segments(sets["forget"], 50)] == [50, 30]
    assert [piece.codes.shape[-1] for piece in _segments(sets["forget"], 70)] == [70]


def test_embeddings_are_compared_less_what_all_tracks_share(shared):
    row = rows(EmbeddingSimilarity, shared)["similarity_embedding", "gold"]
    centre = np.concatenate([shared.embeddings("audio", name) for name in shared.clips]).mean(0)
    asked = caption_generations(shared, "gold", "forget")
    own = shared.embed([g.codes for g in asked if g.track == "track02"]) - centre
    theirs = shared.embed([shared.clips["forget"][1].codes])[0] - centre
    cosines = own @ theirs / np.linalg.norm(own, axis=1) / np.linalg.norm(theirs)
    assert row.per_track["track02"] == pytest.approx(cosines.max())


def test_music_is_compared_by_ear(tmp_path):
    model = MusicgenBackend.load(str(write_tiny_musicgen(tmp_path)))
    random = torch.Generator().manual_seed(0)
    sets = {
        name: [Clip(f"{name}{i}", CAPTIONS[i], torch.randint(0, 32, (2, 50), generator=random)) for i in range(2)]
        for name in ("forget", "holdout")
    }
    first = model.generate([CAPTIONS[0]], seconds=0.5, temperature=0.0, guidance=1.0)[0]
    sets["forget"][0] = Clip("forget0", CAPTIONS[0], first)
    found = rows(MusicSimilarity, SharedEvaluation({"unlearned": model}, sets, embedder=None))
    for kind in ("chroma", "onset"):
        row = found[f"similarity_{kind}", "unlearned"]
        assert row.per_track["forget0"] == pytest.approx(1.0)
        assert row.details["best"]["forget0"] == "greedy"
        assert row.per_track["forget1"] < 1.0
    assert -1 <= found["similarity_melody", "unlearned"].value <= 1


def test_without_chromaprint_it_says_so(shared, monkeypatch):
    monkeypatch.setattr(acoustid, "have_chromaprint", False)
    (row,) = measure(shared, ["similarity_fingerprint"])
    assert row.why == "not measured: the system has no libchromaprint"


class Singing(MarkovBackend):
    """Each code is a pitch."""

    sample_rate = 8000

    def decode(self, codes):
        seconds = torch.arange(8000 // 4) / 8000
        notes = torch.sin(2 * torch.pi * (200 + 40 * codes[:, :1, :, None]) * seconds)  # [N, 1, T, S]
        return notes.flatten(2)


@pytest.mark.skipif(not acoustid.have_chromaprint, reason="the system has no libchromaprint")
def test_case_D18_clips_too_short_for_a_fingerprint_are_left_out_and_said(capfd):
    def printed(sets):
        shared = SharedEvaluation({"unlearned": Singing({1: 6.0})}, sets, embedder=None)
        return {row.metric: row for row in measure(shared, ["similarity_fingerprint"])}

    short, long = [Clip("short", "step 1", melody(1, 8))], [Clip("long", "step 1", melody(1, 16))]
    holdout = [Clip("h", "step 7", melody(7, 16))]
    for sets in ({"forget": short, "holdout": holdout}, {"forget": long, "holdout": short}):
        row = printed(sets)["similarity_fingerprint"]
        which = "forget" if sets["forget"] is short else "holdout"
        assert row.why == f"not measured: every {which} track is too short to be compared"
    found = printed({"forget": [*short, *long], "holdout": holdout})["similarity_fingerprint"]
    assert found.per_track.keys() == {"long"}
    assert found.value == 1.0
    assert found.details["too_short"] == ["short"]
    (row,) = measure(SharedEvaluation(models(), clips(), embedder=None), ["similarity_fingerprint"])
    assert row.why == "not measured: a sample rate of 8 Hz is too low for a fingerprint"
    assert capfd.readouterr().err == ""  # the library itself says nothing


def test_fingerprints_are_those_of_the_sound(shared, monkeypatch):
    monkeypatch.setattr(acoustid, "have_chromaprint", True)
    monkeypatch.setattr(acoustid, "fingerprint", lambda rate, channels, blocks: b"".join(blocks))
    seen = []

    def compare(one, two):
        seen.append(one)
        a, b = (np.frombuffer(data, "<i2") for _, data in (one, two))
        return float((a == b).mean())

    monkeypatch.setattr(acoustid, "compare_fingerprints", compare)
    monkeypatch.setitem(sys.modules, "chromaprint", SimpleNamespace(decode_fingerprint=lambda data: (data, 1)))
    monkeypatch.setattr("encore.metrics.similarity.music_similarity.MIN_FINGERPRINT_RATE", 0)
    row = rows(FingerprintSimilarity, shared)["similarity_fingerprint", "base"]
    assert row.value == 1.0
    assert seen[0][0] == 40 / 4.0  # seconds


def test_without_tokens_there_are_draws_alone():
    sets = {"forget": latent_clips(2), "holdout": latent_clips(2, first=2)}
    shared = SharedEvaluation({"unlearned": LatentBackend()}, sets)
    assert {g.variant for g in caption_generations(shared, "unlearned", "forget")} >= {
        "sample 1",
        "sample 2",
        "sample 3",
    }
    found = {row.metric: row for row in measure(shared, ["similarity_embedding", "similarity_codes"])}
    assert found["similarity_embedding"].value is not None
    assert found["similarity_codes"].why == "not measured: the model has no tokens"


def test_a_broken_model_is_told_of(shared):
    broken = MarkovBackend()
    with torch.no_grad():
        broken.module["table"][1] = float("nan")
    (row, _) = CodeSimilarity().measure(shared.derive(models={"unlearned": broken}))
    assert "is not finite" in row.why


def test_an_empty_set_is_as_one_that_is_not_there(shared):
    assert measure(shared.derive(clips={**shared.clips, "retain": []}), ["similarity_embedding"])[0].value is not None
