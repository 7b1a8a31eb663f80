from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.metrics.markov import clips, models
from tests.metrics.utility.test_fad import Loudness

from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.utility.tag_kl import MIN_PROBABILITY, TagKl, TagKlForget, TagKlHoldout, kl


class Tagger(Loudness):
    """Three tags that are independent of one another: sigmoids."""

    identity = "tagger/1"
    tag_names = ("low", "high", "wide")

    def tags(self, waveforms):
        return torch.stack([-waveforms.mean(-1), waveforms.mean(-1), waveforms.std(-1)], -1).sigmoid()


def evaluation(**options) -> SharedEvaluation:
    options = {"embedder": {"ast": Tagger()}} | options
    return SharedEvaluation(models(), clips(), **options)


def slow_kl(p, q):
    p, q = (
        [max(value / sum(row), MIN_PROBABILITY) for value in row] for row in (p, q)
    )  # no row of the taggers here is below MIN_PROBABILITY
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_it_is_the_kl_of_normalised_tags_from_base_s_play_of_the_same_caption():
    shared = evaluation(samples_per_caption=2)
    found = {(row.metric, row.model): row for row in TagKl().measure(shared)}
    base, gold = shared.tags("base", "retain", "ast"), shared.tags("gold", "retain", "ast")
    tracks = sorted({clip.track for clip in shared.clips["retain"]})
    for i, track in enumerate(tracks):
        expected = np.mean([slow_kl(base[2 * i + k], gold[2 * i + k]) for k in range(2)])
        assert found["tag_kl_ast", "gold"].per_track[track] == pytest.approx(expected)
    assert found["tag_kl_ast", "gold"].unit == "nats"


def test_beside_the_track_itself_and_what_the_codec_costs():
    recorded = [torch.linspace(-1, 1, 50) * (i + 1) for i in range(3)]
    shared = evaluation(recordings={"retain": lambda: recorded})
    found = {(row.metric, row.model): row for row in TagKl().measure(shared)}
    assert list(found) == [
        ("tag_kl_ast", "unlearned"), ("tag_kl_ast", "gold"), ("tag_kl_track_ast", "base"),
        ("tag_kl_track_ast", "unlearned"), ("tag_kl_track_ast", "gold"), ("tag_kl_track_ast", "none"),
    ]  # fmt: skip
    order = sorted(range(3), key=lambda i: shared.clips["retain"][i].track)
    itself, play = shared.tags("audio", "retain", "ast"), shared.tags("base", "retain", "ast")
    file = shared.tags("recorded", "retain", "ast")
    pairs = [slow_kl(itself[place], play[i]) for i, place in enumerate(order)]
    assert found["tag_kl_track_ast", "base"].value == pytest.approx(np.mean(pairs))
    codec = np.mean([slow_kl(file[place], itself[place]) for place in order])
    assert found["tag_kl_track_ast", "none"].value == pytest.approx(codec)


def test_kl_of_certainties_stays_finite_and_of_equals_is_nothing():
    sure = np.array([[1.0, 0.0], [0.5, 0.5]])
    assert kl(sure, sure[::-1])[0] == pytest.approx(math.log(2), abs=1e-4)
    assert kl(sure, np.array([[0.0, 1.0], [0.5, 0.5]])) == pytest.approx([-math.log(MIN_PROBABILITY), 0], rel=1e-4)


def test_without_a_tagger_it_says_so():
    (row,) = TagKl().measure(evaluation(embedder=Loudness()))
    assert row.why == "not measured: none of the embedders has tags: give --embedder clap, ast or passt"


@pytest.mark.parametrize(("metric", "clips"), [(TagKlHoldout, "holdout"), (TagKlForget, "forget")])
def test_on_other_captions(metric, clips):
    assert {row.set for row in metric().measure(evaluation())} == {clips}


def test_on_forget_near_to_gold_is_better_than_near_to_the_tracks():
    assert {row.direction for row in TagKlForget().measure(evaluation())} == {"gold"}
    assert {row.direction for row in TagKl().measure(evaluation())} == {"lower"}
