from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encore.text import MAX_CAPTION, clean_caption, counted, csv_cell, did_you_mean, near, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Für Elise 🎹 [/] <b>", "Für Elise 🎹 [/] <b>"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31mred", "\\x1b[31mred"),
        (os.fsdecode(b"caf\xe9.wav"), "caf\\xe9.wav"),
        ("abc\u202egnp.wav", "abc\\u202egnp.wav"),
        ("a\u2028b\x9bc", "a\\u2028b\\x9bc"),
        ("👩\u200d🎤", "👩\u200d🎤"),
    ],
)
def test_printable_escapes_what_a_terminal_would_act_on(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(alphabet=st.characters()))
def test_printable_is_one_line_of_valid_unicode_and_settled(text: str) -> None:
    shown = printable(text)
    shown.encode("utf-8")
    assert len(shown.splitlines()) <= 1
    assert printable(shown) == shown


@pytest.mark.parametrize(
    "cell", ["=cmd()", "+1+cmd|' /C calc'!A0", "-cmd()", "@SUM(A1)", "\t=cmd()", "\r=cmd()", " =1"]
)
def test_a_formula_is_prefixed(cell: str) -> None:
    assert csv_cell(cell).startswith("'")


@pytest.mark.parametrize("cell", ["-1.5", "+3", "plain", "a=b", "", 4, -0.25])
def test_numbers_and_text_are_left_alone(cell: object) -> None:
    assert csv_cell(cell) == str(cell)


@given(st.text(alphabet=st.characters()))
def test_a_caption_is_one_line_of_valid_unicode(text: str) -> None:
    caption = clean_caption(text)
    caption.encode("utf-8")
    assert len(caption) <= MAX_CAPTION
    assert len(caption.splitlines()) <= 1
    assert clean_caption(caption) == caption


def test_near_names_ignore_case_and_come_back_as_written() -> None:
    assert near("greensleves", ["Greensleeves", "ode_to_joy"]) == ["Greensleeves"]
    assert did_you_mean(["a", "b\x1b"]) == "did you mean 'a' or 'b\\x1b'?"
    assert did_you_mean([]) == ""


def test_one_is_not_a_plural() -> None:
    assert [counted(n, "track") for n in (0, 1, 1000)] == ["0 tracks", "1 track", "1,000 tracks"]
