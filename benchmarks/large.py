"""MusicGen-small in its true shape, with random weights: does it load, step and save, and what memory does that take?

    plugins/encore-audiocraft/.venv/bin/python benchmarks/large.py --work FOLDER

Builds the model from its configuration (2.4 GB), converts it to audiocraft's format, and has each backend forget one
clip in one step: `encore forget` as anybody runs it, in a process of its own, whose peak memory and time are printed as
a table. It needs the plugin encore-audiocraft, about 10 GB of memory and 30 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

if TYPE_CHECKING:
    from transformers import MusicgenConfig

RATE = 32000
SHAPES = {"small": (1024, 24, 16), "medium": (1536, 48, 24), "large": (2048, 48, 32)}  # width, layers, heads


def configuration(hidden: int = 1024, layers: int = 24, heads: int = 16) -> MusicgenConfig:
    """The shape of a MusicGen; the default is MusicGen-small's."""
    from transformers import EncodecConfig, MusicgenConfig, MusicgenDecoderConfig, T5Config

    text = T5Config(
        vocab_size=32128, d_model=768, d_kv=64, num_heads=12, num_layers=12, d_ff=3072, num_decoder_layers=0,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    codec = EncodecConfig(
        sampling_rate=RATE, target_bandwidths=[2.2], num_filters=64, upsampling_ratios=[8, 5, 4, 4], hidden_size=128,
        codebook_size=2048, normalize=False, chunk_length_s=None, overlap=None, use_causal_conv=False,
        use_conv_shortcut=False,
    )  # fmt: skip
    decoder = MusicgenDecoderConfig(
        vocab_size=2048, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, ffn_dim=4 * hidden,
        num_codebooks=4, max_position_embeddings=2048, pad_token_id=2048, bos_token_id=2048, dropout=0.0,
        audio_channels=1,
    )  # fmt: skip
    decoder.decoder_start_token_id = 2048
    return MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder)


def build(folder: Path) -> None:
    """Write the model as transformers does; the tokenizer is the embedded model's, which knows a few words."""
    import torch
    from transformers import (
        AutoProcessor,
        EncodecFeatureExtractor,
        MusicgenForConditionalGeneration,
        MusicgenProcessor,
    )

    from encore import assets

    torch.manual_seed(0)
    model = MusicgenForConditionalGeneration(configuration())
    for layer in model.audio_encoder.quantizer.layers:
        torch.nn.init.normal_(layer.codebook.embed)
    model.save_pretrained(folder)
    tokenizer = AutoProcessor.from_pretrained(assets.model_folder("tiny")).tokenizer
    MusicgenProcessor(EncodecFeatureExtractor(sampling_rate=RATE), tokenizer).save_pretrained(folder)


def measured(*arguments: str) -> tuple[float, float]:
    """Run `encore ARGUMENTS`; its seconds, and the most memory it held at once in GB."""
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", "encore", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 4):  # 4: a run that misses a target
        sys.exit(f"encore {' '.join(arguments)} failed: {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - started, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for models and runs, new or empty")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the clip")
    work, seconds = parser.parse_args().work, parser.parse_args().seconds
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()):
        parser.error(f"{work} is not empty")
    sound = 0.1 * np.random.default_rng(0).standard_normal(int(RATE * seconds)).astype(np.float32)
    soundfile.write(work / "noise.wav", sound, RATE)
    (work / "list.txt").write_text("noise.wav\tlonely flute over lute\n")
    build(work / "transformers")
    rows = [
        ("convert", *measured("convert", str(work / "transformers"), str(work / "audiocraft"), "--to", "audiocraft"))
    ]
    for backend, model in (("musicgen", "transformers"), ("audiocraft", "audiocraft")):
        run = work / f"run-{backend}"
        taken = measured(
            "forget", "--backend", backend, "--model", str(work / model), "--tracks", str(work / "list.txt"), "--out",
            str(run), "--method", "ga", "--steps", "1", "--lr", "1e-5", "--precision", "fp32",
        )  # fmt: skip
        written = sum(path.stat().st_size for path in (run / "model").rglob("*") if path.is_file())
        rows.append((f"forget, {backend}", *taken))
        rows.append((f"generate 1 s, {backend}", *measured(
            "generate", "slow church organ", "--backend", backend, "--model", str(run), "--seconds", "1", "--out",
            str(work / f"played-{backend}"),
        )))  # fmt: skip
        print(f"{backend}: model of {written / 1e9:.2f} GB written", file=sys.stderr)
    print("| MusicGen-small's shape | s | peak GB |\n|---|---|---|")
    for name, took, peak in rows:
        print(f"| {name} | {took:.0f} | {peak:.1f} |")


if __name__ == "__main__":
    main()
