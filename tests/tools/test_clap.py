"""The tiny CLAP: its figures against a slow count, what it was made from, and that the record holds what ships."""

import json

import numpy as np
import pytest
import torch
from tests.tools.test_assets import ASSETS
from tools.build_assets import background, clap, install
from transformers import ClapModel, ClapProcessor

RECORD = json.loads((ASSETS / "build.json").read_text())["clap"]


def test_retrieval_is_that_of_a_slow_count():
    scores = np.random.default_rng(0).normal(size=(12, 12)).round(1)
    ranks = [1 + sum(scores[i, j] > scores[i, i] for j in range(12)) for i in range(12)]
    pairs = [(scores[i, i], scores[j, k]) for i in range(12) for j in range(12) for k in range(12) if j != k]
    found = clap.retrieval(scores)
    assert found["recall_1"] == pytest.approx(sum(rank == 1 for rank in ranks) / 12, abs=1e-3)
    assert found["mean_average_precision"] == pytest.approx(sum(1 / rank for rank in ranks) / 12, abs=1e-3)
    assert found["auc"] == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs), abs=1e-3)


def test_what_ships_is_small_and_met_its_bars():
    assert sum(file.stat().st_size for file in (ASSETS / install.CLAP).iterdir()) < 2e6
    assert clap.missed(RECORD["retrieval"]) == []
    worse = json.loads(json.dumps(RECORD["retrieval"]))
    worse["songs"]["auc"] = 0.79
    assert clap.missed(worse) == ["CLAP, songs: auc 0.79, must be at least 0.8"]


def test_it_reads_words_it_never_saw_and_its_space_is_small_enough_for_a_fad_of_24():
    processor = ClapProcessor.from_pretrained(ASSETS / install.CLAP)
    model = ClapModel.from_pretrained(ASSETS / install.CLAP, dtype=torch.float32).eval()
    tokens = processor.tokenizer(["triumphant brass, Zigeunerweisen"], return_tensors="pt")
    assert 3 not in tokens.input_ids  # <unk>
    vector = model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
    assert vector.shape == (1, clap.DIM)
    assert 2 * clap.DIM <= 24


def test_captions_are_varied_without_losing_the_instruments():
    caption, rng = background.background(7).caption, np.random.default_rng(0)
    told = {clap.paraphrased(caption, rng) for _ in range(200)}
    assert caption in told
    sound = caption.split(", ")[0].split()[1:]
    assert all(set(sound) <= set(text.split(", ")[0].split()) or text in sound for text in told)


def test_the_loss_falls_on_a_few_clips():
    processor = clap.make_processor([background.background(i).caption for i in range(40)])
    torch.manual_seed(0)
    model = clap.make_model(len(processor.tokenizer))
    audio = np.random.default_rng(0).standard_normal((4, 80_000)).astype(np.float32) * [[1], [0.3], [0.1], [0.03]]
    heard = clap.features(processor, audio.astype(np.float32)).float()
    assert heard.shape == (4, 1, 256, 64)
    texts = [background.background(i).caption for i in range(4)]
    tokens = processor.tokenizer(texts, padding=True, return_tensors="pt")
    text = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = clap._contrast(model, heard, text)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
