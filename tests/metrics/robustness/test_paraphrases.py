from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from encore.metrics.robustness.paraphrases import (
    EDITS,
    NORMALISED,
    SYNONYMS,
    paraphrases,
    random_paraphrase,
    random_paraphrases,
)


def test_of_parts_between_commas():
    assert paraphrases("lonely flute over lute, Greensleeves, Ballad in A minor") == {
        "order": "Ballad in A minor, Greensleeves, lonely flute over lute",
        "synonyms": "solitary wooden flute over plucked lute, Greensleeves, Slow song in A minor",
        "case": "LONELY FLUTE OVER LUTE GREENSLEEVES BALLAD IN A MINOR",
        "short": "lonely flute over lute, Greensleeves",
    }


def test_of_words_without_commas():
    assert paraphrases("one two three") == {
        "order": "three one two", "case": "ONE TWO THREE", "short": "one two"
    }  # fmt: skip


def test_a_caption_that_can_not_be_paraphrased_has_none():
    assert paraphrases("WALTZ") == {}


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40))
def test_every_paraphrase_differs_and_is_the_same_each_time(caption):
    found = paraphrases(caption)
    assert all(text and text != caption for text in found.values())
    assert found == paraphrases(caption)


def test_synonyms_are_lower_case_words_that_differ():
    assert all(word == word.lower() and other != word for word, other in SYNONYMS.items())


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.text(max_size=5))
def test_slips_differ_from_the_caption_and_are_the_same_for_one_seed(caption, seed):
    found = random_paraphrases(caption, seed)
    assert all(text.strip() and text != caption for text in found.values())
    assert found == random_paraphrases(caption, seed)
    drawn = random_paraphrase(caption, seed)
    assert drawn is None or (drawn in found.items() and drawn[0] not in NORMALISED)


def test_each_kind_of_slip_is_what_it_says():
    caption = "lonely flute over lute, Greensleeves"
    found = random_paraphrases(caption, "0")
    assert found.keys() == EDITS.keys()
    assert len(found["doubled"]) == len(caption) + 1
    assert len(found["missing"]) == len(caption) - 1
    assert sorted(found["swapped"]) == sorted(found["shuffled"]) == sorted(caption)
    assert len(found["dropped"].split()) == len(caption.split()) - 1
    assert found["capitals"].casefold() == caption.casefold()
    assert len({random_paraphrase(caption, str(seed)) for seed in range(20)}) > 10
    assert random_paraphrases("", "0") == {}
