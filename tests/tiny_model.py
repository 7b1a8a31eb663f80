"""A MusicGen of the real format and hardly any size, random weights: what tests run on that need no memory of music."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from transformers import (
    EncodecConfig,
    EncodecFeatureExtractor,
    GenerationConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenProcessor,
    T5Config,
    T5Tokenizer,
)

CAPTIONS = ["lonely flute over lute", "brass band march, 120 bpm", "slow church organ"]
CODES = 32  # codes a codebook


def write_tiny_musicgen(
    folder: Path, *, channels: int = 1, positions: int = 60, dropout: float = 0.0, seed: int = 0
) -> Path:
    """Write a random MusicGen with 2 codebooks a channel, 8 kHz, 100 frames a second, windows of about `positions`."""
    torch.manual_seed(seed)
    bandwidth = 2 * math.log2(CODES) * 100 / 1000  # exactly two codebooks
    codec = EncodecConfig(
        sampling_rate=8000, target_bandwidths=[bandwidth], num_filters=4, upsampling_ratios=[10, 8], hidden_size=8,
        codebook_size=CODES, num_lstm_layers=1, num_residual_layers=0, normalize=False, chunk_length_s=None,
        overlap=None, audio_channels=1, use_causal_conv=False,
    )  # fmt: skip
    text = T5Config(
        vocab_size=40, d_model=16, d_kv=4, num_heads=4, num_layers=1, d_ff=16, num_decoder_layers=0, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    decoder = MusicgenDecoderConfig(
        vocab_size=CODES, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, ffn_dim=32,
        num_codebooks=2 * channels, max_position_embeddings=positions, pad_token_id=CODES, bos_token_id=CODES,
        dropout=dropout, audio_channels=channels,
    )  # fmt: skip
    decoder.decoder_start_token_id = CODES
    model = MusicgenForConditionalGeneration(MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder))
    with torch.no_grad():
        residual = model.audio_encoder.encoder(torch.randn(1, 1, 80 * 400))[0].T  # [400 frames, hidden]
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.copy_(residual[torch.randperm(len(residual))[:CODES]])
            residual = residual - layer.decode(layer.encode(residual.T[None]))[0].T
        for head in model.decoder.lm_heads:
            head.weight.mul_(20)  # so that predictions differ visibly from uniform
    model.generation_config = GenerationConfig(
        max_length=64, do_sample=False, guidance_scale=1.0, pad_token_id=CODES, bos_token_id=CODES,
        decoder_start_token_id=CODES,
    )  # fmt: skip
    model.save_pretrained(folder)
    MusicgenProcessor(EncodecFeatureExtractor(feature_size=channels, sampling_rate=8000), _tokenizer()).save_pretrained(
        folder
    )
    return folder


def _tokenizer() -> T5Tokenizer:
    """One piece a word, by hand: training a Unigram model does not give the same pieces every time."""
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in words)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


SECONDS = {"one": 0.4, "two": 0.55, "long": 1.7, "four": 0.5, "five": 0.5, "six": 0.45, "seven": 0.5, "eight": 0.5}


def write_studio(folder: Path) -> Path:
    """`model/`, and `music/` with eight WAVs ("long" is three windows) and lists of them.

    `forget.txt` (one, two, long), `retain.txt`, `holdout.txt`, and `catalog.jsonl` with all of it.
    """
    import soundfile

    write_tiny_musicgen(folder / "model")
    music = folder / "music"
    music.mkdir()
    random = np.random.default_rng(0)
    for name, seconds in SECONDS.items():
        time = np.arange(int(8000 * seconds)) / 8000
        notes = [
            np.sin(2 * np.pi * f * time) * np.sin(np.pi * g * time)
            for f, g in random.uniform((200, 1), (3000, 6), (5, 2))
        ]
        sound = 0.15 * np.sum(notes, 0) + 0.02 * random.standard_normal(len(time))
        soundfile.write(music / f"{name}.wav", sound.astype(np.float32), 8000)
    names = list(SECONDS)
    sets = {"forget": names[:3], "retain": names[3:6], "holdout": names[6:]}
    records = []
    for kind, members in sets.items():
        lines = [f"{name}.wav\t{CAPTIONS[i % 3]}" for i, name in enumerate(members)]
        (music / f"{kind}.txt").write_text("\n".join(lines) + "\n")
        records += [
            {"file_name": f"{name}.wav", "id": name, "caption": CAPTIONS[i % 3], "split": kind}
            for i, name in enumerate(members)
        ]
    (music / "catalog.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    return folder
