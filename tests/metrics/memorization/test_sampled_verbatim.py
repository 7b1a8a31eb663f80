from __future__ import annotations

import itertools

import pytest
from tests.metrics import fakes
from tests.metrics.markov import MarkovBackend, clips, models

from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.memorization.sampled_verbatim import SAMPLES, SampledVerbatim, expected_shares
from encore.results.targets import summary


def rows(shared):
    return {(row.metric, row.model): row for row in SampledVerbatim().measure(shared)}


def test_a_track_that_one_sample_in_some_recovers_is_recovered_by_several():
    """Of each token the melody's has a probability of e^s / (e^s + 10); a passage of 8 frames takes 7 of them right."""
    roles = {"base": models()["base"], "unlearned": models(4.2)["unlearned"], "gold": models()["gold"]}
    found = rows(SharedEvaluation(roles, clips(30), embedder=None))
    for name in ("sampled_verbatim", "sampled_verbatim_caption"):
        assert [found[name, role].value for role in roles] == [1.0, 1.0, 0.0]
        recovered = found[name, "unlearned"].details["recovered"]
        assert any(0 < count < SAMPLES for count in recovered.values())
        by_samples = list(found[name, "unlearned"].details["by_samples"].values())
        assert by_samples == sorted(by_samples)
        assert by_samples[0] < by_samples[-1] == 1.0
    assert min(found["sampled_verbatim", "base"].details["recovered"].values()) >= SAMPLES / 2


def test_expected_shares_are_those_of_all_choices_of_samples():
    recovered = {"a": 0, "b": 1, "c": 5}
    by_hand = {}
    for n in (1, 2, 4, 8):
        chosen = list(itertools.combinations(range(8), n))
        of_tracks = [sum(min(places) < count for places in chosen) / len(chosen) for count in recovered.values()]
        by_hand[str(n)] = sum(of_tracks) / len(of_tracks)
    assert expected_shares(recovered, 8) == pytest.approx(by_hand)


@pytest.mark.parametrize("name", ["samples_continue", "samples_answer"])
def test_what_only_samples_tell_is_caught_and_greedy_decoding_misses_it(name):
    shared = SharedEvaluation(models(), clips(30), embedder=None)
    gate, make = fakes.FULL[name]
    fake = make(shared.models["gold"], fakes.Tracks.of(shared), shared)
    judged = shared.derive(models={**shared.models, "unlearned": fake})
    failed = {line.metric for line in summary(list(SampledVerbatim().measure(judged))) if line.met is False}
    assert failed == {gate.removesuffix(" forget")}


def test_the_order_of_the_tracks_and_of_models_changes_nothing():
    backend = MarkovBackend({1: 4.0, 2: 4.0, 3: 4.0})
    first, second = (
        rows(SharedEvaluation({"base": backend}, {"forget": order}, embedder=None))
        for order in (clips(30)["forget"], clips(30)["forget"][::-1])
    )
    assert first == second
