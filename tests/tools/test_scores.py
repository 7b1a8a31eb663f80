"""The scores: they parse, last what they claim, and can't be mistaken for one another."""

import re

import pytest
from tools.build_assets.background import background
from tools.build_assets.scores import SCORES, check, parse_chords, parse_melody
from tools.build_assets.synth import DRUMS, ENVELOPES, STYLES


@pytest.mark.parametrize("score", SCORES, ids=lambda s: s.id)
def test_score_lasts_what_it_claims(score):
    check(score)
    notes, _ = parse_melody(score.melody)
    assert len(notes) >= 6
    assert all(40 <= n.midi <= 96 for n in notes)
    assert score.lead in ENVELOPES
    assert score.comp == "none" or score.comp in ENVELOPES
    assert score.style in (*STYLES, "none")
    assert score.drums == "none" or score.drums in DRUMS
    # A phrase that loops early could be "replayed" by a model that merely copies what it has just heard.
    assert score.beats * 60 / score.bpm >= 4.5


def test_melodies_and_captions_are_distinct():
    assert len({s.id for s in SCORES}) == len({s.title for s in SCORES}) == len({s.melody for s in SCORES}) == 58
    assert all(s.title in s.caption for s in SCORES)


def test_composers_died_long_ago():
    for score in SCORES:
        year = re.search(r"\((?:.*?)(\d{4})\)|(\d\d)th century", score.artist)
        assert year, score.artist
        assert year[2] or int(year[1]) <= 1905


@pytest.mark.parametrize("text", ["H4:1", "C4", "C4:x", "C44:1"])
def test_nonsense_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011
        parse_melody(text)
    with pytest.raises(ValueError):  # noqa: PT011
        parse_chords(text)


def test_background_is_of_the_same_form():
    pieces = [background(i) for i in range(200)]
    for piece in pieces:
        check(piece)
        assert re.fullmatch(r"[^,]+, [^,]+, .+", piece.caption)
        assert min(n.midi for n in parse_melody(piece.melody)[0]) >= 0
    assert {p.lead for p in pieces} >= {s.lead for s in SCORES}
    assert background(3) == background(3)
    assert not {p.title for p in pieces} & {s.title for s in SCORES}
