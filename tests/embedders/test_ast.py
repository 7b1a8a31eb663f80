from __future__ import annotations

import torch
from tests.embedders.networks import save_ast
from tests.embedders.test_pretrained import opened
from transformers import ASTFeatureExtractor, ASTForAudioClassification


def test_vectors_and_tags_are_those_of_the_library(tmp_path):
    embedder = opened("ast", save_ast(tmp_path))
    sounds = torch.randn(2, 10240, generator=torch.Generator().manual_seed(1))
    extractor, model = (kind.from_pretrained(tmp_path) for kind in (ASTFeatureExtractor, ASTForAudioClassification))
    heard = extractor(list(sounds.numpy()), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**heard).logits
        pooled = model.audio_spectrogram_transformer(**heard).pooler_output
    vectors, tags = embedder.embed_with_tags(sounds)
    torch.testing.assert_close(tags, logits.sigmoid(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors, pooled, rtol=1e-4, atol=1e-4)
    assert embedder.tag_names == ("Music", "Flute", "Drum", "Speech", "Silence")
    assert embedder.embed_text(["a flute"]) is None
