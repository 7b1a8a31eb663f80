"""The shipped assets: what the metadata says is what lies there, and the models reload to the same inputs."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from tools.build_assets import codec, corpus, install, lm, synth
from tools.build_assets.scores import SCORES
from transformers import AutoProcessor, EncodecFeatureExtractor

ASSETS = Path(__file__).parents[2] / "src" / "encore" / "assets"
ROWS = [json.loads(line) for line in (ASSETS / "metadata.jsonl").read_text().splitlines()]
MODELS = [ASSETS / name for name in lm.FOLDERS.values()]


def test_assets_stay_under_25_mb():
    assert install.megabytes(ASSETS) < 25


def test_metadata_matches_the_files():
    assert {row["file_name"] for row in ROWS} == {f"tracks/{p.name}" for p in (ASSETS / "tracks").iterdir()}
    for row in ROWS:
        data = (ASSETS / row["file_name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        info = soundfile.info(ASSETS / row["file_name"])
        assert (info.samplerate, info.channels, info.frames) == (16_000, 1, 80_000)


def test_splits_are_disjoint_and_whole():
    splits = [row["split"] for row in ROWS]
    assert len({row["id"] for row in ROWS}) == len({row["sha256"] for row in ROWS}) == len(ROWS)
    assert {s: splits.count(s) for s in corpus.SIZES} == corpus.SIZES
    assert splits.count("background") == corpus.SHIPPED
    assert {row["id"] for row in ROWS if row["split"] == "forget"} >= set(corpus.ALWAYS_FORGET)


def test_songs_are_what_the_scores_render():
    by_id = {score.id: score for score in SCORES}
    for row in ROWS:
        if row["split"] != "background":
            assert row["caption"] == by_id[row["id"]].caption


@pytest.mark.parametrize("score", SCORES[:4], ids=lambda s: s.id)
def test_scores_still_render_to_the_shipped_songs(score):
    shipped, _ = soundfile.read(ASSETS / "tracks" / f"{score.id}.flac", dtype="int16")
    assert not np.any(shipped % 16)
    # One step of 12 bits: sines differ in their last bit between processors.
    assert np.abs(shipped.astype(int) - synth.render(score)).max() <= 16


def test_licence_names_every_melody():
    text = (ASSETS / "LICENSE.md").read_text()
    assert all(s.title in text and s.artist in text for s in SCORES)


@pytest.mark.parametrize("folder", MODELS, ids=lambda p: p.name)
def test_models_are_float16(folder):
    with safe_open(folder / "model.safetensors", "pt") as f:
        assert {f.get_slice(k).get_dtype() for k in f.keys()} == {"F16"}  # noqa: SIM118


@pytest.mark.parametrize("folder", MODELS, ids=lambda p: p.name)
def test_config_names_no_path_of_the_builder(folder):
    assert '"/' not in (folder / "config.json").read_text()


def test_models_share_codec_text_encoder_and_tokenizer():
    def shared(folder):
        with safe_open(folder / "model.safetensors", "pt") as f:
            keys = [k for k in f.keys() if k.startswith(("audio_encoder.", "text_encoder."))]  # noqa: SIM118
            return {k: f.get_tensor(k) for k in keys}, (folder / "tokenizer.json").read_bytes()

    weights, tokenizer = shared(MODELS[0])
    for folder in MODELS[1:]:
        others, other_tokenizer = shared(folder)
        assert others.keys() == weights.keys()
        assert all(torch.equal(others[k], weights[k]) for k in weights)
        assert other_tokenizer == tokenizer


@pytest.mark.slow
def test_reloaded_base_knows_the_forget_set_by_heart_and_gold_does_not():
    rows = [row for row in ROWS if row["split"] == "forget"][:3]
    audio = corpus.read([{"path": str(ASSETS / row["file_name"])} for row in rows])
    nll, codes = {}, {}
    for folder in MODELS[:2]:
        model, tokenizer = lm.load(folder)
        codes[folder] = codec.encode(model.audio_encoder, audio)
        data = lm.Data(model, tokenizer, codes[folder], [row["caption"] for row in rows])
        nll[folder] = data.nll(model, torch.arange(3))
    assert torch.equal(*codes.values())
    assert nll[MODELS[0]].max() < 1.0
    assert nll[MODELS[1]].min() > 2.0


def test_folder_loads_and_plays_as_transformers_own():
    processor = AutoProcessor.from_pretrained(MODELS[0])
    assert EncodecFeatureExtractor.from_pretrained(MODELS[0]).sampling_rate == 16_000
    model, tokenizer = lm.load(MODELS[0])
    inputs = processor(text=[ROWS[0]["caption"]], return_tensors="pt")
    assert torch.equal(inputs["input_ids"], tokenizer([ROWS[0]["caption"]], return_tensors="pt")["input_ids"])
    audio = model.generate(**inputs, max_new_tokens=28)
    assert audio.shape[:2] == (1, 1)
    assert audio.shape[2] > 20 * synth.FRAME
    assert audio.abs().max() > 0.01


def test_codes_are_the_same_alone_and_in_a_batch():
    model, _ = lm.load(MODELS[0])
    audio = corpus.read([{"path": str(ASSETS / row["file_name"])} for row in ROWS[:3]])
    together = codec.encode(model.audio_encoder, audio)
    alone = torch.cat([codec.encode(model.audio_encoder, x[None]) for x in audio])
    assert (together == alone).float().mean() > 0.999


def test_a_gold_for_a_list_shares_codec_text_encoder_and_tokenizer_with_the_installed_base(tmp_path):
    lm.installed(tmp_path)
    base, tokenizer = lm.load(MODELS[0])
    made = lm.make_model(tmp_path / "codec", len(tokenizer), 7, 0.1)
    for part in ("audio_encoder", "text_encoder"):
        mine, theirs = (getattr(model, part).state_dict() for model in (made, base))
        assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    assert (tmp_path / "tokenizer" / "tokenizer.json").read_text() == (MODELS[0] / "tokenizer.json").read_text()
