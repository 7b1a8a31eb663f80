"""The page of a check: complete, closed to the outside, and unmoved by what strangers call their tracks."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tests.report.test_page import HOSTILE, Seen

from encore.report.check_page import headline, write_check_page
from encore.text import printable

TRACK: dict[str, Any] = {
    "id": "one", "title": None, "artist": "A", "file": "/music/one.wav", "line": 1, "sha256": "a" * 64, "seconds": 5.0,
    "caption": "brass", "caption_source": "list", "verdict": "no_sign", "sentences": ["No sign of it."],
    "evidence": {
        "nll": {"value": 4.0, "unit": "nats/token"}, "membership": {"p": 0.5, "p_adjusted": 0.6},
        "extraction": [{"prompt": "caption", "share": 0.25}, {"prompt": "1 s, sampled", "share": 0.75}],
    },
}  # fmt: skip
RESULT: dict[str, Any] = {
    "encore": "0", "checked": "2026-11-28T16:20:05Z", "seconds": 3.0, "versions": {}, "hardware": {}, "seed": 0,
    "samples": 3,
    "model": {"name": "models/mine", "sha256": "b" * 64},
    "summary": {"memorised": 1, "trained_on": 0, "no_sign": 1, "not_checked": 1},
    "calibration": {"tracks": 20, "source": "those given", "compared": 10, "extracted": 0},
    "list": {"p": 0.01, "tracks": 2, "doubt": None},
    "artists": [{"artist": "A", "tracks": ["one", "two"], "p": 0.02, "p_adjusted": 0.04}],
    "tests": [{"test": "membership", "tried": False, "why": "no likelihood"}, {"test": "likelihood", "why": None}],
    "notes": ["a note"], "not_checked": [{"why": "noise.wav is not audio", "hint": "take it off"}],
    "tracks": [TRACK, TRACK | {"id": "two", "title": "Two", "verdict": "memorised", "sentences": ["It generates it."]}],
}  # fmt: skip


def page(result: dict[str, Any], folder: Path) -> Seen:
    return Seen(write_check_page(result, folder).read_text("utf-8"))


def test_it_says_what_was_tried_found_and_not_shown(tmp_path: Path) -> None:
    seen = page(RESULT, tmp_path)
    for words in (
        "1 of 2 tracks is memorised by the model", "Two: memorised", "It generates it.", "No sign of it.", "a note",
        "membership: not tried, no likelihood", "noise.wav is not audio (take it off)", "What this does not show",
        "Compared with 20 held-out tracks (those given)", "All 2 tracks together: p = 0.01", "0.04", "25%", "75%",
        "28 November 2026", "a" * 64, "b" * 64, "It does not say that a track is not in the model",
    ):  # fmt: skip
        assert words in seen.text, words
    assert not {"script", "link[href]", "iframe"} & {tag for tag, _ in seen.tags}
    assert "/music" not in seen.text  # folders of whoever made it are not shown


def test_names_of_strangers_are_text(tmp_path: Path) -> None:
    result = deepcopy(RESULT)
    result["tracks"] = [TRACK | {"id": name, "title": name, "artist": name, "sentences": [name]} for name in HOSTILE]
    result["notes"] = HOSTILE
    seen = page(result, tmp_path)
    assert not any(tag == "script" for tag, _ in seen.tags)
    for name in HOSTILE:
        assert printable(name) in seen.text


@pytest.mark.parametrize(
    ("memorised", "trained_on", "tracks", "sentence"),
    [
        (0, 0, 1, "No sign of the track was found under these tests"),
        (0, 0, 2, "No sign of 2 tracks was found under these tests"),
        (1, 0, 1, "1 of 1 track is memorised by the model"),
        (2, 1, 3, "2 of 3 tracks are memorised by the model"),
        (0, 2, 3, "2 of 3 tracks are in the model's training data"),
    ],
)
def test_headlines(memorised: int, trained_on: int, tracks: int, sentence: str) -> None:
    summary = {"memorised": memorised, "trained_on": trained_on, "no_sign": 0, "not_checked": 0}
    assert headline({"summary": summary, "tracks": [TRACK] * tracks}) == sentence
