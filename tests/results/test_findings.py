from __future__ import annotations

import pytest

from encore.api import Result
from encore.results.findings import Finding, findings
from encore.results.targets import summary


def row(metric, model, clips, value, n=8, **fields):
    return Result(metric, model, clips, value, n=n, **fields)


OF_TABLE = {"target", "gap", "farthest_track", "most_lost_track", "no_evidence", "model_free"}


def told(*rows):
    """The findings against the model, beside what the table of targets says."""
    return [finding for finding in findings(rows) if finding.code not in OF_TABLE]


@pytest.mark.parametrize("metric", ["verbatim", "paraphrased_verbatim", "prompt_reencoded_verbatim"])
def test_without_gold_a_replay_is_a_failure(metric):
    own = row(metric, "unlearned", "forget", 0.25)
    (finding,) = told(own)
    assert finding.level == "fail"
    assert finding.text.startswith("2 of 8 forget tracks are still generated verbatim from ")
    assert told(own, row(metric, "gold", "forget", 0.0)) == []  # the table judges it then
    assert told(row(metric, "unlearned", "forget", 0.0)) == []
    assert told(own, row(metric, "unlearned", "holdout", 0.3)) == []


def test_retain_at_the_level_of_unheard_music_is_ruin():
    own = [row("nll", "unlearned", "retain", 4.5), row("nll", "unlearned", "holdout", 4.6)]
    base = [row("nll", "base", "retain", 0.1), row("nll", "base", "holdout", 4.5)]
    assert told(*own)[0].level == "warn"
    (finding,) = told(*own, *base)
    assert finding == Finding("fail", "the NLL of retain is 4.50, that of held-out music 4.60: retain is lost")
    ignorant = [row("nll", "base", "retain", 4.4), base[1]]
    assert told(*own, *ignorant) == []
    assert told(row("nll", "unlearned", "retain", 4.0), own[1]) == []


def similarity(kind, model, *above):
    return row(f"similarity_{kind}", model, "forget", 0.5, details={"above": [list(pair) for pair in above]})


def test_two_of_harmony_melody_and_rhythm_in_one_play_are_brought_back():
    rows = [
        similarity("chroma", "unlearned", ("a", "sample 1", 0.9), ("b", "short", 0.9), ("c", "greedy", 0.9)),
        similarity("melody", "unlearned", ("a", "sample 2", 0.9), ("b", "short", 0.8), ("c", "greedy", 0.9)),
        similarity("onset", "unlearned", ("a", "sample 3", 0.9)),
        similarity("onset", "gold", ("c", "sample 1", 0.9)),
    ]
    assert told(*rows) == [Finding("warn", "a simple prompt recovers harmony and melody of b (short)")]


def test_a_failure_that_no_target_shows_leaves_no_verdict():
    rows = [
        row("membership_auc", "unlearned", "forget", 0.5), row("verbatim", "unlearned", "forget", 0.5),
    ]  # fmt: skip
    assert any(finding.text.startswith("no evidence") for finding in findings(rows[:1]))
    assert not any(finding.text.startswith("no evidence") for finding in findings(rows))


def test_an_attack_without_power_is_not_judged():
    def judged(base):
        rows = [row("prompt_pitch_shifted_verbatim", role, "forget", v) for role, v in base.items()]
        return summary(rows)[0].met

    assert judged({"base": 0.0, "unlearned": 0.0, "gold": 0.0}) is None
    assert judged({"base": 0.5, "unlearned": 0.0, "gold": 0.0}) is True
    assert judged({"base": 0.5, "unlearned": 0.25, "gold": 0.0}) is False
    assert judged({"unlearned": 0.0, "gold": 0.0}) is True


def test_plays_that_fit_their_captions_less_than_base_s_are_told():
    base = row("clap_score_tiny", "base", "retain", 0.6, low=0.5, high=0.7)
    (finding,) = told(base, row("clap_score_tiny", "unlearned", "retain", 0.4))
    assert finding.level == "warn"
    assert finding.text.endswith("clap_score_tiny 0.40, base's 0.60 (0.50 to 0.70)")
    assert told(base, row("clap_score_tiny", "unlearned", "retain", 0.55)) == []
    assert told(base, row("clap_score_tiny", "unlearned", "holdout", 0.1)) == []


def copied(kind, model, tracks, holdout=10):
    details = {"flagged": list(tracks), "holdout_tracks": holdout}
    return row(f"similarity_{kind}_flagged", model, "forget", len(tracks) / 8, unit="share", details=details)


def test_tracks_whose_codes_come_back_in_two_ways_are_named_but_not_golds():
    rows = [
        copied("bleu", "unlearned", "abc"), copied("edit", "unlearned", "ab"), copied("edit", "gold", "b"),
    ]  # fmt: skip
    assert told(*rows) == [
        Finding("warn", "a simple prompt recovers a, by its n-grams of codes and its order of codes")
    ]


@pytest.mark.parametrize("kind", ["bleu", "edit", "fingerprint"])
def test_one_kind_is_enough_where_it_names_more_tracks_than_chance(kind):
    """Of 8 forget and 10 holdout tracks the three most alike are all of forget by chance in one of 15, four in 44."""
    assert told(copied(kind, "unlearned", "abc")) == []
    assert [finding.text.partition(",")[0] for finding in told(copied(kind, "unlearned", "abcd"))] == [
        f"a simple prompt recovers {track}" for track in "abcd"
    ]
    assert told(copied(kind, "unlearned", "abcd"), copied(kind, "gold", "d")) == []
    assert len(told(copied(kind, "unlearned", "ab", holdout=100))) == 2


def test_tokens_that_tell_a_model_from_gold_are_warned_of():
    epsilon = {value: row("epsilon", "unlearned", "forget", value) for value in (9.0, 3.5)}
    noise, none = (row("epsilon", "gold2", "forget", value) for value in (2.7, 0.0))
    text = "single tokens tell it from gold: ε 9.00 on forget, 2.70 between golds"
    assert told(epsilon[9.0], noise) == [Finding("warn", text)]
    assert told(epsilon[3.5], noise) == told(epsilon[9.0]) == []
    assert len(told(epsilon[3.5], none)) == 1


def test_replays_that_music_nobody_heard_has_as_well_are_no_sign_of_memory():
    base = row("verbatim", "base", "forget", 0.1, unit="share")
    unheard, gold = (row("verbatim", *where, 0.5, unit="share") for where in (("base", "holdout"), ("gold", "forget")))
    ignorant = row("nll", "gold", "forget", 4.0, details={"memorised": []})  # it continues a simple pattern
    for others in ([unheard], [gold, ignorant]):
        assert told(base, *others)[0].text.startswith("nothing measurable to forget")
    assert told(base) == []
    known = row("verbatim", "base", "forget", 0.6, unit="share")
    assert told(known, unheard) == told(known, gold, ignorant) == []


def memorised(model, *tracks, value=0.01):
    return row("nll", model, "forget", value, details={"memorised": list(tracks)})


@pytest.mark.parametrize(
    ("of_gold", "words"),
    [
        (memorised("gold", "a", "b"), "gold has the NLL of memorised tracks on a, b"),
        (row("verbatim_caption", "gold", "forget", 0.25), "gold generates 2 of 8 forget tracks verbatim from caption"),
        (row("verbatim", "gold", "forget", 1.0), "gold generates 8 of 8 forget tracks verbatim from 1 s"),
    ],
)
def test_a_gold_that_knows_the_tracks_is_told_and_excuses_nothing(of_gold, words):
    before, after = (row("verbatim", role, "forget", 0.25, unit="share") for role in ("base", "unlearned"))
    own = [] if of_gold.metric == "verbatim" else [row("verbatim", "gold", "forget", 0.25)]
    found = findings([before, after, of_gold, *own])
    assert any(finding.code == "gold_knows" and finding.text.startswith(words) for finding in found)
    assert any(finding.text.startswith("2 of 8 forget tracks are still generated verbatim") for finding in found)
    assert not {"nothing_to_forget", "no_evidence"} & {finding.code for finding in found}


def test_beside_a_gold_that_knows_the_tracks_a_memorised_nll_is_a_failure():
    rows = [memorised("gold", "a"), memorised("unlearned", "a")]
    assert (summary(rows)[0].met, summary(rows)[0].lacks) == (None, "gold")
    codes = {(finding.level, finding.code) for finding in findings(rows)}
    assert {("fail", "verbatim"), ("warn", "gold_knows")} <= codes
    assert "no_evidence" not in {code for _, code in codes}
    assert told(memorised("gold", value=4.0), memorised("unlearned", value=4.0)) == []


def test_what_has_forgotten_is_not_judged_beside_a_gold_that_knows_the_tracks():
    rows = [
        memorised("gold", "a"), memorised("gold2", value=4.0), memorised("unlearned", value=4.4),
        row("nll", "unlearned", "holdout", 4.4), row("nll_gap_gold", "unlearned", "forget", 439.0),
        row("kl_gold", "unlearned", "forget", 5.0), row("kl_gold", "gold2", "forget", 4.0),
        row("relearn", "unlearned", "forget", 3.5), row("relearn", "gold", "forget", 0.01),
        row("kl_gold", "unlearned", "retain", 0.01), row("kl_gold", "gold2", "retain", 0.02),
    ]  # fmt: skip
    of_forget = {line.metric: (line.met, line.lacks) for line in summary(rows) if line.set == "forget"}
    assert of_forget.items() >= dict.fromkeys(("nll", "kl_gold", "relearn"), (None, "gold")).items()
    assert {finding.code for finding in findings(rows)} == {"gold_knows"}


def test_tracks_of_a_memorised_nll_are_something_to_forget():
    quiet = row("membership_auc", "base", "forget", 0.5, low=0.3)
    assert told(quiet)[0].code == "nothing_to_forget"
    assert told(quiet, memorised("base", "a")) == []


def test_likelihoods_that_are_not_finite_are_a_failure():
    dead = row("nll", "unlearned", "forget", None, per_track={"a": None}, why="not measured: the value is nan")
    silent = row("verbatim", "unlearned", "retain", None, details={"not_finite": True})
    (finding,) = told(dead, silent)
    assert (finding.level, finding.code) == ("fail", "not_finite")
    assert "(forget, retain)" in finding.text
    assert told(row("nll", "unlearned", "forget", None, why="not measured: there are no forget tracks")) == []
