"""Which bytes are taken for Windows-1252 text, and which are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encore.errors import InputError
from encore.text_encoding import LEGACY, decoded, western


@pytest.mark.parametrize("text", ["Björk", "créée", "Señor", "Cœur", "“so” – it’s 50 €", "Straße, Öl"])
def test_western_european_text_is_windows_1252(text: str) -> None:
    assert western(text.encode("cp1252")) == text
    assert decoded(text.encode("cp1252"), "a.txt") == (text, LEGACY)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("вальс", "cp1251"), ("corazón", "mac_roman"), ("Björk", "cp850"), ("音楽", "shift_jis"), ("é", "utf-8")],
)
def test_other_text_is_not(text: str, encoding: str) -> None:
    assert western(text.encode(encoding)) is None


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
    st.sampled_from(["utf-8-sig", "utf-16", "utf-32"]),
)
def test_unicode_with_a_mark_comes_back_as_it_was(text: str, encoding: str) -> None:
    assert decoded(text.encode(encoding), "a.txt")[0] == text


def test_a_text_that_is_not_what_it_announces_is_refused() -> None:
    with pytest.raises(InputError, match=r"a\.txt is not UTF-16 text"):
        decoded(b"\xff\xfea", "a.txt")
