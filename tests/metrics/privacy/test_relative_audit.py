from __future__ import annotations

import itertools

import pytest
from tests.metrics.markov import FORGET, RETAIN, MarkovBackend, clips
from tests.metrics.utility.test_fad import Loudness

from encore import stats
from encore.api import Result
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.memorization.generations import caption_generations
from encore.metrics.privacy.relative_audit import RelativeAudit
from encore.results.rules import nearer_to_gold


@pytest.fixture(scope="module")
def measured():
    """The unlearned model's generations are base's, and gold's are others."""
    memory = dict.fromkeys(RETAIN, 6.0)
    roles = {
        "base": MarkovBackend(memory | dict.fromkeys(FORGET, 3.0), noise=0.1),
        "unlearned": MarkovBackend(memory | dict.fromkeys(FORGET, 2.5), noise=0.1),
        "gold": MarkovBackend(memory, noise=0.5, seed=1),
    }
    shared = SharedEvaluation(roles, clips(30), embedder=Loudness())
    return shared, {row.model: row for row in RelativeAudit().measure(shared)}


def test_distances_are_paired_within_a_caption(measured):
    shared, found = measured
    row = found["unlearned"]
    vectors = {}
    for role in ("base", "unlearned", "gold"):
        drawn = [one for one in caption_generations(shared, role, "forget") if one.variant.startswith("sample")]
        for track in sorted({one.track for one in drawn}):
            vectors[role, track] = shared.embed([one.codes for one in drawn if one.track == track])
    for track, difference in row.per_track.items():
        to_gold, to_base = (
            stats.paired_mmd2(vectors["unlearned", track], vectors[role, track], row.details["bandwidth"])
            for role in ("gold", "base")
        )
        assert difference == pytest.approx(to_gold - to_base)
    signs = list(itertools.product((1, -1), repeat=3))
    sums = [sum(s * d for s, d in zip(flips, row.per_track.values(), strict=True)) for flips in signs]
    as_far = sum(abs(one) >= abs(sums[0]) - 1e-12 for one in sums) / len(sums)
    assert row.details["p"] == pytest.approx(as_far / 2 if sums[0] > 0 else 1 - as_far / 2)


def test_itself_is_at_no_distance(measured):
    _, found = measured
    assert found["gold"].details["to_gold"] == found["base"].details["to_base"] == 0
    assert found["base"].value == pytest.approx(-found["gold"].value)


def test_it_is_judged_only_where_base_is_found():
    def row(p):
        return Result("relative_audit", "", "forget", 0.1, details={"p": p})

    assert nearer_to_gold({"base": row(0.01), "unlearned": row(0.2)})
    assert not nearer_to_gold({"base": row(0.01), "unlearned": row(0.04)})
    with pytest.raises(KeyError):
        nearer_to_gold({"base": row(0.3), "unlearned": row(0.04)})
