from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from encore.metrics.rewordings import SYNONYMS, rewordings


def test_of_parts_between_commas():
    assert rewordings("lonely flute over lute, Greensleeves, Ballad in A minor") == {
        "order": "Ballad in A minor, Greensleeves, lonely flute over lute",
        "synonyms": "solitary wooden flute over plucked lute, Greensleeves, Slow song in A minor",
        "case": "LONELY FLUTE OVER LUTE GREENSLEEVES BALLAD IN A MINOR",
        "short": "lonely flute over lute, Greensleeves",
    }


def test_of_words_without_commas():
    assert rewordings("one two three") == {
        "order": "three one two", "case": "ONE TWO THREE", "short": "one two"
    }  # fmt: skip


def test_a_caption_that_can_not_be_reworded_has_none():
    assert rewordings("WALTZ") == {}


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40))
def test_every_rewording_differs_and_is_the_same_each_time(caption):
    found = rewordings(caption)
    assert all(text and text != caption for text in found.values())
    assert found == rewordings(caption)


def test_synonyms_are_lower_case_words_that_differ():
    assert all(word == word.lower() and other != word for word, other in SYNONYMS.items())
