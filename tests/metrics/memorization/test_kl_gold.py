"""Against a triple loop over tokens and codes."""

from __future__ import annotations

import pytest
from tests.metrics.markov import K, MarkovBackend, V, clips, models

from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.memorization.kl_gold import KlGold


def by_hand(gold: MarkovBackend, model: MarkovBackend, clip) -> float:
    step, total = int(clip.caption.split()[1]), 0.0
    p, q = (backend.module["table"][step].detach().double().log_softmax(-1) for backend in (gold, model))
    for k in range(K):
        before = V
        for code in clip.codes[k].tolist():
            total += sum(float(p[k, before, v].exp() * (p[k, before, v] - q[k, before, v])) for v in range(V))
            before = code
    return total / clip.codes.numel()


def test_rows_are_the_loop_and_gold2_is_the_noise():
    roles, sets = models(forgotten=3.0), clips()
    sets["forget"][0] = type(sets["forget"][0])(
        "track01", "step 1", sets["forget"][0].codes[:, :7]
    )  # padded in a batch
    found = {(row.model, row.set): row for row in KlGold().measure(SharedEvaluation(roles, sets, embedder=None))}
    assert {role for role, _ in found} == {"base", "unlearned", "gold2"}
    for (role, name), row in found.items():
        expected = {clip.track: by_hand(roles["gold"], roles[role], clip) for clip in sets[name]}
        assert row.per_track == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert row.value == pytest.approx(sum(expected.values()) / 3, rel=1e-4)
    assert found["gold2", "forget"].value < found["unlearned", "forget"].value < found["base", "forget"].value
    assert "seed noise" in found["gold2", "forget"].note


def test_a_model_that_shuns_the_right_token_is_far_from_gold_though_it_has_forgotten():
    def kl(forgotten: float) -> float:
        evaluation = SharedEvaluation(models(forgotten), clips(), embedder=None)
        return next(r.value for r in KlGold().measure(evaluation) if (r.model, r.set) == ("unlearned", "forget"))

    assert kl(0.0) < 0.05 < kl(-6.0)
