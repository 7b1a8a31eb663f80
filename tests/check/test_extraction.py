"""What prompts extract of a track, on a model whose generations are known by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.metrics import markov

from encore.check.extraction import best_shares, extracted, extractions, passage_frames
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.memorization.verbatim import MATCH

FRAMES = 24  # 6 s


@pytest.fixture(scope="module")
def found():
    model = markov.MarkovBackend({1: 9.0, 2: 1.2}, noise=0.05)
    clips = [markov.track(step, FRAMES) for step in (1, 2, 3)] + [replace(markov.track(4, FRAMES), track="short")]
    clips[3] = replace(clips[3], codes=clips[3].codes[:, :6])
    # The second window of a track is generated for the caption of the first.
    clips.append(replace(markov.track(5, FRAMES), track="shifted", caption="step 1"))
    clips.append(replace(markov.track(1, FRAMES), track="shifted", codes=markov.melody(1, FRAMES + 5)[:, 5:]))
    evaluation = SharedEvaluation({"base": model}, {"forget": clips}, embedder=None)
    return extractions(evaluation, "base", "forget", samples=20)


def by_prompt(found, track):
    return {item.prompt: item for item in found[track]}


def test_a_memorised_track_is_extracted_by_each_prompt_and_not_sampled_again(found):
    kinds = by_prompt(found, "track01")
    assert {kind: item.share for kind, item in kinds.items()} == {
        "caption": 1.0, "caption, sampled": 1.0, "caption, shortened": 0.0, "1 s": 1.0,
    }  # fmt: skip
    assert kinds["caption, sampled"].samples == 3
    assert kinds["1 s"].seconds == 2.0
    assert extracted(found["track01"])


def test_the_best_shares_of_held_out_tracks_are_by_kind_of_prompt(found):
    assert best_shares(found.values()).items() >= {"caption": 1.0, "1 s": 1.0}.items()
    assert best_shares([found["track03"]])["1 s"] < MATCH
    assert best_shares([]) == {}


def test_samples_reproduce_now_and_then_what_greedy_decoding_does_not(found):
    kinds = by_prompt(found, "track03")
    assert not extracted(found["track03"])
    assert kinds["1 s, sampled"].samples == 20
    assert kinds["1 s, sampled"].reproduced == 0


def test_a_passage_counts_wherever_it_is_in_any_window(found):
    assert by_prompt(found, "shifted")["caption"].share == 1.0


def test_a_track_shorter_than_a_prompt_and_a_passage_is_not_compared(found):
    assert found["short"] == []
    assert [passage_frames([markov.track(1, n)], 4.0) for n in (11, 12, 16, 20, 60)] == [0, 4, 6, 8, 8]
