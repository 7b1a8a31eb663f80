"""The fast probes on models whose every figure can be worked out: what is planted is found, with gold and without."""

from __future__ import annotations

import pytest
from tests.latent_model import LatentBackend, latent_clips
from tests.metrics import fakes
from tests.metrics.markov import FORGET, HOLDOUT, RATE, RETAIN, MarkovBackend, melody, models

from encore.api import Clip
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.measure import measure
from encore.metrics.memorization.off_target import VerbatimElsewhere
from encore.metrics.memorization.probes import OFFSETS, VerbatimOffset, probes
from encore.results.findings import findings
from encore.results.targets import summary

FRAMES = 18  # a melody begins again after 11
WORDS = ("soft organ", "fast violins", "sad trumpet", "old banjo", "loud drums", "calm flute", "warm bass", "dull harp")
PROBES = [
    "nll",
    "verbatim",
    "verbatim_caption",
    "verbatim_elsewhere",
    "verbatim_offset",
    "paraphrased_once",
    "unconditional",
]


def clips():
    sets = {"forget": FORGET, "retain": RETAIN, "holdout": HOLDOUT}
    return {
        name: [Clip(f"t{n}", f"{WORDS[n % 8]}, step {n}, for {WORDS[n % 8]}", melody(n, FRAMES)) for n in steps]
        for name, steps in sets.items()
    }


@pytest.fixture
def shared():
    return SharedEvaluation(models(), clips(), embedder=None)


def judged(shared, fake, metrics, gold=True):
    """Gates that a fake fails, and what is said without gold."""
    roles = {"base": shared.models["base"], "unlearned": fake} | ({"gold": shared.models["gold"]} if gold else {})
    rows = measure(shared.derive(models=roles), metrics)
    if gold:
        return {line.metric for line in summary(rows) if line.met is False}
    return [finding.text for finding in findings(rows) if finding.level == "fail"]


def caught(shared, name, metrics=PROBES):
    gate, make = fakes.FAKES.get(name) or fakes.FULL[name]
    gold = shared.models["gold"]
    fake = make(gold, fakes.Tracks.of(shared), shared)
    assert judged(shared, fake, metrics) == {gate.removesuffix(" forget")}
    said = judged(shared, fake, metrics, gold=False)
    assert len(said) == 1
    return said[0]


def test_gold_is_caught_by_no_probe(shared):
    assert judged(shared, shared.models["gold"], [*PROBES, "paraphrased", "quantised"]) == set()
    assert judged(shared, shared.models["gold"], [*PROBES, "paraphrased", "quantised"], gold=False) == []


def test_case_D1_a_caption_that_gives_another_track_is_caught(shared):
    assert (
        caught(shared, "crosses")
        == "3 of 3 forget tracks are still generated verbatim for another prompt (held-out: 0%)"
    )


def test_case_D1_a_caption_that_gives_the_middle_of_its_track_is_caught(shared):
    assert "another prompt" in caught(shared, "begins_in_the_middle")


def test_case_D1_a_retain_caption_that_gives_a_forget_track_is_caught_and_named(shared):
    stolen, gives = clips()["retain"][0].caption, clips()["forget"][1].codes
    fake = fakes.wrap(
        MarkovBackend(noise=0.1, seed=1), "steals", answer=lambda asked: gives if asked.caption == stolen else None
    )
    rows = VerbatimElsewhere().measure(shared.derive(models={"unlearned": fake}))
    row = next(row for row in rows if row.set == "forget")
    assert row.value == pytest.approx(1 / 3)
    assert row.details["where"] == {"t2": "caption of t4 (retain)"}


def test_case_D2_a_continuation_from_the_middle_is_caught(shared):
    assert "1 s of the middle" in caught(shared, "continues_from_the_middle")


def test_case_D3_memory_without_a_caption_is_caught(shared):
    assert "NLL without caption" in caught(shared, "likely_without_caption")
    assert "NLL without caption" in caught(shared, "likely_with_an_empty_caption")
    assert "1 s without caption" in caught(shared, "continues_without_caption")
    assert "verbatim without caption" in caught(shared, "dreams")


def test_case_D4_memory_under_any_other_slip_is_caught_by_the_full_set(shared):
    full = [*PROBES, "paraphrased", "quantised"]
    assert "NLL under paraphrases" in caught(shared, "likely_under_a_slip", full)
    assert "1 s under paraphrases" in caught(shared, "continues_under_a_slip", full)
    assert "verbatim from paraphrases" in caught(shared, "answers_a_slip", full)


def test_case_D4_likelihoods_of_rounded_weights_have_a_gate(shared):
    full = [*PROBES, "paraphrased", "quantised"]
    assert "NLL at 8 bits" in caught(shared, "likely_at_8_bits", full)
    assert "NLL at 4 bits" in caught(shared, "likely_at_4_bits", full)


def test_case_D5_a_filter_on_exact_captions_is_caught_in_the_fast_set(shared):
    assert "NLL under one paraphrase" in caught(shared, "likely_in_other_words")
    assert "1 s under one paraphrase" in caught(shared, "continues_in_other_words")
    assert "verbatim from one paraphrase" in caught(shared, "answers_other_words")


def test_prompts_are_drawn_from_each_third_of_a_track_by_the_seed(shared):
    asked = probes(shared).prompts["forget"]
    prompt = round(RATE)
    for clip in clips()["forget"]:
        own = [one for one in asked if one.name == "offset" and one.original.track == clip.track]
        assert len(own) == OFFSETS
        at = [int(one.clip.track.rpartition(" ")[2]) for one in own]
        places = range(1, FRAMES - 2 * prompt + 1)
        assert [any(a in places[len(places) * i // 3 : len(places) * (i + 1) // 3] for a in at) for i in range(3)]
        for frame, one in zip(at, own, strict=True):
            assert one.clip.codes.tolist() == clip.codes[:, frame : frame + 3 * prompt].tolist()
    other = probes(SharedEvaluation(models(), clips(), embedder=None, seed=1)).prompts["forget"]
    assert [one.clip.track for one in other] != [one.clip.track for one in asked]


def test_a_track_that_replays_from_its_middle_is_found_in_its_best_place():
    """The model knows the second half of the track alone."""
    codes = melody(1, FRAMES)
    codes[:, :9] = melody(5, 9)
    shared = SharedEvaluation(
        {"base": MarkovBackend({1: 9.0}, noise=0.1)}, {"forget": [Clip("t", "step 1", codes)]}, embedder=None
    )
    (row, none) = VerbatimOffset().measure(shared)
    assert row.value == 1
    assert none.why == "not measured: there are no holdout tracks"


def test_tracks_too_short_for_a_prompt_and_more_are_said():
    shared = SharedEvaluation({"base": MarkovBackend()}, {"forget": [Clip("t", "step 1", melody(1, 7))]}, embedder=None)
    whys = {row.metric: row.why for row in measure(shared, PROBES) if row.set == "forget" and row.value is None}
    assert whys["verbatim_offset"] == "not measured: no forget track is longer than two prompts of 1 s"
    assert whys["verbatim_elsewhere"] == "not measured: no forget track is 2 s long"
    assert "unconditional_verbatim" not in whys


def test_without_tokens_there_are_losses_alone():
    sets = {"forget": latent_clips(2), "holdout": latent_clips(2, first=2)}
    shared = SharedEvaluation({"unlearned": LatentBackend()}, sets, embedder=None)
    found = {(row.metric, row.set): row for row in measure(shared, PROBES)}
    assert found["unconditional_nll", "forget"].unit == found["paraphrased_once_nll", "forget"].unit == "loss"
    for metric in (
        "unconditional_verbatim",
        "unconditional_generation",
        "paraphrased_once_verbatim",
        "verbatim_offset",
    ):
        assert found[metric, "forget"].why == "not measured: the model has no tokens"


def test_rows_are_the_same_whatever_the_order_of_tracks(shared):
    turned = SharedEvaluation(models(), {name: own[::-1] for name, own in clips().items()}, embedder=None)
    there, back = (
        {(row.metric, row.model, row.set): row.value for row in measure(one, PROBES)} for one in (shared, turned)
    )
    assert there == pytest.approx(back)
