"""Arrangements of scores: seeded, playable, and told apart by their melody. No score of music21's is needed."""

import numpy as np
import pytest
from tools.build_assets import pieces
from tools.build_assets.midi import Note

TUNE = [Note(float(i), 1.0, 60 + x, 0, 90) for i, x in enumerate([0, 2, 4, 5, 7, 5, 4, 2, 0, 7, 0, 0])]


def arrange(parts, seed=0):
    rng = np.random.default_rng(seed)
    return pieces.arrange("x", "Title", "Somebody (1883)", "reel", "D major", parts, rng)


def test_arrangements_are_seeded():
    assert arrange([TUNE]) == arrange([TUNE])
    assert len({arrange([TUNE], seed).caption for seed in range(20)}) > 10


@pytest.mark.parametrize("seed", range(30))
def test_every_part_has_a_program_and_the_caption_says_what_is_played(seed):
    for parts in ([TUNE], [TUNE] * 4):
        numbered = [[Note(n.start, n.length, n.pitch, i, n.velocity) for n in p] for i, p in enumerate(parts)]
        piece = arrange(numbered, seed)
        assert {n.part for n in piece.notes} == set(range(len(piece.programs)))
        assert all(0 <= n.pitch < 128 and 0 < n.velocity < 128 and n.start >= 0 for n in piece.notes)
        names = pieces.SOLOISTS if len(parts) == 1 else pieces.ENSEMBLES
        assert any(f", {name}," in piece.caption for name in names)
        assert "reel by Somebody in D major, " in piece.caption
        assert piece.caption.endswith(f"{piece.bpm} bpm")
        assert piece.bpm <= pieces.FASTEST


def test_programs_are_general_midi():
    assert all(0 <= p < 128 for names in (pieces.ENSEMBLES, pieces.SOLOISTS) for ps in names.values() for p in ps)


def test_a_melody_is_the_same_in_another_key_and_setting():
    up = [Note(n.start, n.length, n.pitch + 3, 0, 70) for n in TUNE]
    below = [Note(n.start, n.length, n.pitch - 12, 1, 70) for n in TUNE]
    assert pieces.melody(TUNE) == pieces.melody(up + below)
    assert pieces.melody(TUNE) != pieces.melody([*TUNE[:3], Note(3.0, 1.0, 66, 0, 90), *TUNE[4:]])
