"""Which targets a run misses: each alone, in a sentence with its figures."""

from __future__ import annotations

import math
from typing import Any

import pytest

from encore.unlearn.gold_free_targets import missed
from encore.unlearn.monitor import Snapshot

LEVELS = {"f1": 3.0, "f2": 5.0}
FINE: dict[str, float] = {"memorised": 1.0, "worst": 1.0, "not_memorised": 1.0, "holdout": 1.0}


def look(forget: dict[str, float] = LEVELS, harm: dict[str, float] = FINE, **parts: Any) -> Snapshot:
    fields: dict[str, Any] = {
        "memorised": {"m1": 0.02, "m2": 0.04}, "not_memorised": {"o": 3.0}, "holdout": 4.0, "target_nll": LEVELS,
        "tolerance": {}, "worst": "m1",
    }  # fmt: skip
    return Snapshot(forget, harm=harm, **fields | parts)


def verbatim(retain: tuple[int, int] = (16, 15), forget: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "retain": {"caption": {"before": retain[0], "after": retain[1], "tracks": 16, "lost": []}},
        "forget": {"1 s": {"after": list(forget), "tracks": 8}},
    }


def test_a_run_within_all_limits_misses_nothing() -> None:
    assert missed(look(), look(), "nats/token", verbatim()) == []
    assert missed(look(), look({"f1": 3.2, "f2": 5.5}), "nats/token", None) == []
    assert missed(look(), look({"f1": 1.5, "f2": 6.5}), "nats/token", None) == []  # of their own levels


@pytest.mark.parametrize(
    ("after", "target", "says"),
    [
        (
            look({"f1": 1.4, "f2": 6.5}), "forget_nll",
            "1 of 2 forget tracks ended below 0.5 times the target NLL, the farthest f1 (1.40 of 3.00)",
        ),
        (
            look({"f1": 6.1, "f2": 2.6}), "forget_nll",
            "1 of 2 forget tracks ended above 2 times the target NLL, the farthest f1 (6.10 of 3.00)",
        ),
        (
            look({"f1": 2.6, "f2": 4.5}), "forget_nll",
            "the forget tracks' mean NLL is 3.55, over 10% away from its target 4.00",
        ),
        (
            look(harm=FINE | {"memorised": 4.0}, memorised={"m1": 0.14, "m2": 0.16}), "memorised",
            "memorised retain went from 0.030 to 0.150 nats per token, by more than the 0.03 allowed",
        ),
        (
            look(harm=FINE | {"worst": 2.0}, memorised={"m1": 0.52, "m2": 0.04}), "worst",
            "the memorised track m1 went from 0.020 to 0.520 nats per token, by more than the 0.25 allowed",
        ),
        (
            look(harm=FINE | {"not_memorised": 2.0}, not_memorised={"o": 3.3}), "not_memorised",
            "retain that is not memorised went from 3.000 to 3.300 nats per token, by more than the 0.15 allowed",
        ),
        (
            look(harm=FINE | {"holdout": 2.0}, holdout=3.7), "holdout",
            "held-out music went from 4.000 to 3.700 nats per token, by more than the 0.15 allowed",
        ),
        (
            look(harm=FINE | {"holdout": math.inf}, holdout=math.nan), "holdout",
            "held-out music went from 4.000 to a value that is not finite",
        ),
    ],
)  # fmt: skip
def test_each_target_that_is_missed_is_said(after: Snapshot, target: str, says: str) -> None:
    assert missed(look(), after, "nats/token", verbatim()) == [{"target": target, "message": says}]


def test_generations_are_judged_on_both_sides() -> None:
    lost = missed(look(), look(), "nats/token", verbatim(retain=(16, 14)))
    assert lost == [{
        "target": "verbatim_retain",
        "message": "14 of 16 memorised retain tracks are generated verbatim from the caption, "
        "and the base generates 16",
    }]  # fmt: skip
    left = missed(look(), look(), "nats/token", verbatim(forget=("f1", "f2", "f3", "f4")))
    assert left == [{
        "target": "verbatim_forget",
        "message": "4 of 8 forget tracks are still generated verbatim from the caption and 1 s: f1, f2, f3, …",
    }]  # fmt: skip


def test_without_levels_or_nats_no_level_is_judged() -> None:
    far = {"f1": 0.1, "f2": 0.1}
    assert missed(look(), look(far, target_nll={}), "nats/token", None) == []
    assert missed(look(), look(far), "loss", None) == []
