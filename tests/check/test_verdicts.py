"""Which evidence leads to which verdict, and what does not count."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from encore.check.verdicts import verdict_of

NOTHING: dict[str, Any] = {
    "nll": {"value": 4.0, "held_out": 4.5, "memorised_below": 2.2, "entropy": 4.4, "gold": None, "memorised": False},
    "membership": {"p": 0.4, "p_adjusted": 0.6, "doubt": False, "why": None},
    "extraction": [], "excerpts": [], "searched": 1.0, "similarity": {},
}  # fmt: skip
PROMPT = {
    "prompt": "1 s, sampled",
    "samples": 5,
    "reproduced": 2,
    "share": 0.9,
    "seconds": 2.0,
    "held_out": 0.1,
    "gold": None,
}


def evidence(**changes: Any) -> dict[str, Any]:
    return deepcopy(NOTHING) | changes


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({}, "no_sign", "p = 0.4 under the hypothesis that the model predicts it no better than held-out music). That"),
        ({"extraction": [PROMPT]}, "memorised", "in 2 of 5 random samples, the model generates 2.0 s of it with 90%"),
        ({"extraction": [PROMPT | {"gold": 0.85}]}, "no_sign", ""),  # gold generates it as well
        ({"extraction": [PROMPT | {"held_out": 0.95}]}, "no_sign", ""),  # so does held-out music
        ({"extraction": [PROMPT | {"share": 0.79}]}, "no_sign", ""),
        ({"nll": NOTHING["nll"] | {"value": 0.02, "memorised": True}}, "memorised", "NLL is 0.02 nats per token"),
        ({"excerpts": [{"from": 13.5, "to": 18.5, "nll": 0.1}]}, "memorised", "memorised it from 13.50 to 18.50 s"),
        ({"membership": {"p": 0.01, "p_adjusted": 0.03, "doubt": False, "why": None}}, "trained_on", "p = 0.03"),
        ({"membership": {"p": 0.01, "p_adjusted": 0.03, "doubt": True, "why": None}}, "no_sign",
         "its membership could not be tested reliably"),
        ({"membership": {"p": None, "p_adjusted": None, "doubt": False, "why": "no holdout"}}, "no_sign",
         "membership was not tested: no holdout"),
        ({"similarity": {"chroma": {"value": 0.9, "threshold": 0.5, "above": True}}}, "no_sign", "harmony 0.90 (0.50)"),
    ],
)  # fmt: skip
def test_verdicts(changes: dict[str, Any], verdict: str, words: str) -> None:
    found, sentences = verdict_of(evidence(**changes))
    assert found == verdict
    assert words in " ".join(sentences)
    assert (found == "no_sign") == sentences[0].startswith("No sign of it under these tests")


def test_the_strongest_sentence_comes_first() -> None:
    _, sentences = verdict_of(evidence(extraction=[PROMPT, PROMPT | {"prompt": "caption", "share": 1.0}]))
    assert sentences[0].startswith("From its caption alone")
