from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.metrics.markov import MarkovBackend, clips
from tests.metrics.utility.test_tag_kl import Tagger

from encore import stats
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.utility.clap_score import ClapScore
from encore.metrics.utility.sampling_noise import SamplingNoise
from encore.metrics.utility.tag_kl import kl


class Reader(Tagger):
    """Reads a caption as how long it is."""

    identity = "reader/1"

    def embed_text(self, texts):
        return torch.tensor([[float(len(text)), 1.0] for text in texts])


def evaluation(seed: int = 0, embedder: object = None) -> SharedEvaluation:
    """Models that know nothing, so that no two of their generations are alike."""
    roles = {role: MarkovBackend(noise=1.0, seed=i) for i, role in enumerate(("base", "unlearned"))}
    return SharedEvaluation(roles, clips(), embedder=embedder or {"x": Reader()}, seed=seed)


def test_it_is_base_with_the_next_seed_beside_base():
    found = {row.metric: row for row in SamplingNoise().measure(evaluation(3))}
    assert {(row.model, row.set) for row in found.values()} == {("base", "retain")}
    (second,) = (row for row in ClapScore().measure(evaluation(4)) if row.model == "base")
    assert found["sampling_clap_score_x"].per_track == pytest.approx(second.per_track)
    tags = [evaluation(seed).tags("base", "retain") for seed in (3, 4)]
    assert found["sampling_tag_kl_x"].value == pytest.approx(float(np.mean(kl(*tags)))) != 0
    first, other = (evaluation(seed).embeddings("base", "retain") for seed in (3, 4))
    mmd = stats.paired_mmd2(other, first, stats.median_bandwidth(first))
    assert found["sampling_mmd_x"].value == pytest.approx(mmd)


def test_without_an_embedder_that_can_it_says_so():
    rows = list(SamplingNoise().measure(evaluation(embedder="latents")))
    assert {row.metric: row.value for row in rows} == {"sampling_clap_score": None, "sampling_mmd": None}
    assert "embeds text" in rows[0].why
