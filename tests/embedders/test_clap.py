from __future__ import annotations

import pytest
import torch
from tests.embedders.networks import save_clap
from tests.embedders.test_pretrained import opened
from tests.metrics.markov import MarkovBackend
from transformers import ClapModel, ClapProcessor

from encore import assets, plugins, stats
from encore.data.catalog import Catalog
from encore.data.decode import load
from encore.errors import InputError, UsageError

TEXTS = ["a flute", "drums and flute . loud"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clap(tmp_path_factory.mktemp("clap"))


def test_vectors_and_tags_are_those_of_the_library(folder):
    embedder = opened("clap", folder)
    sounds = torch.randn(2, 16000, generator=torch.Generator().manual_seed(1))
    model, processor = ClapModel.from_pretrained(folder).eval(), ClapProcessor.from_pretrained(folder)
    captions = [embedder.tag_caption.format(name) for name in embedder.tag_names]
    heard = processor.feature_extractor(list(sounds.numpy()), sampling_rate=8000, return_tensors="pt")
    with torch.no_grad():
        read = {
            tuple(texts): model(**processor.tokenizer(texts, padding=True, return_tensors="pt"), **heard)
            for texts in (TEXTS, captions)
        }
    vectors, tags = embedder.embed_with_tags(sounds)
    torch.testing.assert_close(vectors, read[tuple(TEXTS)].audio_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedder.embed_text(TEXTS), read[tuple(TEXTS)].text_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tags, read[tuple(captions)].logits_per_audio.softmax(-1), rtol=1e-3, atol=1e-5)


def test_a_text_that_is_too_long_is_read_as_far_as_the_tower_goes(folder):
    embedder = opened("clap", folder)
    assert embedder.embed_text(["loud " * 60]).shape == (1, 6)
    assert embedder.embed_text([]).shape == (0, 6)


def test_a_clap_whose_features_are_drawn_is_refused(tmp_path):
    with pytest.raises(InputError, match="drawn at random"):
        opened("clap", save_clap(tmp_path, fusion=True))


def test_the_embedded_one_takes_no_weights(folder):
    with pytest.raises(UsageError, match="no weights to choose"):
        plugins.embedders().resolve("clap-tiny").open_weights(MarkovBackend(), str(folder))


def test_the_embedded_one_ranks_a_song_s_own_caption_above_other_songs():
    embedder = plugins.embedders().resolve("clap-tiny").open(MarkovBackend())
    tracks = [
        track for split in ("forget", "retain", "holdout") for track in Catalog.open(assets.CATALOG).tracks(split)
    ]
    sounds = torch.stack(
        [torch.from_numpy(load(str(t.path), sample_rate=16000, channels=1).samples[0]) for t in tracks]
    )
    scores = embedder.embed_text([track.caption for track in tracks]) @ embedder.embed(sounds).T
    own = torch.eye(len(tracks), dtype=torch.bool)
    assert stats.auc(scores[own].numpy(), scores[~own].numpy()) > 0.7
    noise = 0.1 * torch.randn(4, 80000, generator=torch.Generator().manual_seed(0))
    assert scores[own].mean() > (embedder.embed_text([tracks[0].caption]) @ embedder.embed(noise).T).mean() + 0.3
