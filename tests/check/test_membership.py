"""p-values of single tracks and of lists: exact under "all are held-out", and small where members score higher."""

from __future__ import annotations

import itertools
from typing import cast

import numpy as np
import pytest
from tests.metrics import markov

from encore.api import Evaluation
from encore.check.membership import Membership, conformal_p
from encore.evaluate.evaluation import SharedEvaluation
from encore.stats import rank_test


def test_conformal_p_is_uniform_where_a_track_is_like_the_others() -> None:
    random = np.random.default_rng(0)
    p = np.concatenate([conformal_p(table[:1], table[1:]) for table in random.standard_cauchy((4000, 10, 3))])
    counts = np.unique(p.round(9), return_counts=True)
    assert counts[0] == pytest.approx(np.arange(1, 11) / 10)
    assert counts[1] == pytest.approx(400, rel=0.2)


def test_the_one_sided_rank_test_counts_arrangements() -> None:
    members, others = [5.0, 3.5, 4.0], [1.0, 2.0, 3.0, 4.5]
    wins = [sum(a > b for a in group for b in set(members + others) - set(group))
            for group in itertools.combinations(members + others, 3)]  # fmt: skip
    observed = sum(a > b for a in members for b in others)
    assert rank_test(members, others, alternative="greater") == pytest.approx(np.mean(np.array(wins) >= observed))


def evaluation(gold: bool = False) -> Evaluation:
    """Base knows steps 1 to 3 and not the others; 4 of the held-out tracks are compared with."""
    models = {"base": markov.MarkovBackend(dict.fromkeys((1, 2, 3), 6.0), noise=0.1)}
    if gold:
        models["gold"] = markov.MarkovBackend(noise=0.1, seed=1)
    clips = {
        "forget": [markov.track(s, 24) for s in (1, 2, 3, 4)],
        "holdout": [markov.track(s, 24) for s in range(5, 11)],
    }
    return cast("Evaluation", SharedEvaluation(models, clips, embedder=None))  # type: ignore[arg-type]


def test_members_have_the_least_p_and_lists_of_them_a_smaller_one() -> None:
    membership = Membership(evaluation())
    assert membership.names == ["loss", "mink", "zlib", "minkpp", "caption"]
    tracks = membership.per_track()
    assert [tracks[f"track{step:02d}"][0] for step in (1, 2, 3)] == pytest.approx([membership.least_p] * 3)
    assert membership.least_p == pytest.approx(1 / 7)
    assert tracks["track04"][0] > 0.2
    assert all(p <= adjusted for p, adjusted in tracks.values())
    members = [f"track{step:02d}" for step in (1, 2, 3)]
    assert membership.of_list(members) == pytest.approx(1 / 84)  # one arrangement of 9 over 3
    artists = membership.of_artists({"A": members, "B": ["track04"]})
    assert artists["A"] == (pytest.approx(1 / 84), pytest.approx(2 / 84))
    assert artists["B"][1] > 0.1


def test_gold_adds_the_reference_score() -> None:
    assert "reference" in Membership(evaluation(gold=True)).names
