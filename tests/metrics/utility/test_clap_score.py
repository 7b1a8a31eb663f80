from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.metrics.markov import clips, models
from tests.metrics.utility.test_fad import Loudness

from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.measure import measure
from encore.metrics.utility.clap_score import ClapScore, ClapScoreForget, ClapScoreHoldout
from encore.metrics.utility.embedding_distance import row_name


class Reader(Loudness):
    """Reads a caption as how long it is."""

    identity = "reader/1"

    def embed_text(self, texts):
        return torch.tensor([[float(len(text)), 1.0] for text in texts])


def evaluation(embedder=None, **options) -> SharedEvaluation:
    return SharedEvaluation(models(), clips(), embedder={"clap": Reader()} if embedder is None else embedder, **options)


def test_it_is_the_mean_cosine_of_a_caption_and_its_plays():
    shared = evaluation(samples_per_caption=2)
    found = {row.model: row for row in ClapScore().measure(shared)}
    assert list(found) == ["base", "unlearned", "gold", "none"]
    captions = {clip.track: clip.caption for clip in shared.clips["retain"]}
    vectors = iter(shared.embeddings("gold", "retain"))
    for track in sorted(captions):
        a, draws = np.array([len(captions[track]), 1.0]), (next(vectors), next(vectors))
        expected = [sum(a * b) / (sum(a * a) ** 0.5 * sum(b * b) ** 0.5) for b in draws]
        assert found["gold"].per_track[track] == pytest.approx(sum(expected) / 2)
    assert found["gold"].value == pytest.approx(np.mean(list(found["gold"].per_track.values())))
    assert (found["gold"].metric, found["gold"].n) == ("clap_score", 3)


def test_shuffled_is_the_mean_over_pairs_of_other_captions():
    shared = evaluation()
    row = {row.model: row for row in ClapScore().measure(shared)}["none"]
    order = sorted(shared.clips["retain"], key=lambda clip: clip.track)
    sounds = shared.embed([clip.codes for clip in order])
    texts = Reader().embed_text([clip.caption for clip in order]).numpy()

    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    pairs = [(i, j) for i, a in enumerate(order) for j, b in enumerate(order) if a.caption != b.caption]
    expected = np.mean([cosine(texts[i], sounds[j]) for i, j in pairs])
    assert row.details["shuffled"] == pytest.approx(expected)
    assert row.value == pytest.approx(np.mean([cosine(texts[i], sounds[i]) for i in range(len(order))]))


def test_without_a_reader_or_its_weights_the_row_says_which():
    (row,) = ClapScore().measure(evaluation(Loudness()))
    assert row.why == "not measured: none of the embedders embeds text: give --embedder clap"
    rows = measure(evaluation("latents,clap=nobody/nothing,ast=nobody/nothing", offline=True), ["clap_score", "tag_kl"])
    why = {row.metric: row.why for row in rows}
    assert list(why) == ["clap_score", "tag_kl_clap", "tag_kl_ast"]
    assert "can't load nobody/nothing for the embedder clap" in why["clap_score"]
    assert "hf download nobody/nothing" in why["tag_kl_ast"]


@pytest.mark.parametrize(("metric", "clips"), [(ClapScoreHoldout, "holdout"), (ClapScoreForget, "forget")])
def test_on_other_captions(metric, clips):
    assert {row.set for row in metric().measure(evaluation())} == {clips}


@pytest.mark.parametrize(
    ("metric", "embedder", "name"),
    [
        ("fad", "latents", "fad"), ("fad", "clap-tiny", "fad_clap_tiny"), ("clap_score", "clap", "clap_score"),
        ("clap_score", "clap-tiny", "clap_score_tiny"), ("tag_kl_track", "ast", "tag_kl_track_ast"),
    ],
)  # fmt: skip
def test_a_row_s_name_tells_the_embedder(metric, embedder, name):
    assert row_name(metric, embedder) == name


def test_on_forget_near_to_gold_is_better_than_a_good_fit():
    assert {row.direction for row in ClapScoreForget().measure(evaluation())} == {"gold"}
    assert {row.direction for row in ClapScore().measure(evaluation())} == {"higher"}
