"""The tiny CLAP: transformers' ClapModel on the background's sounds and captions. `python -m tools.build_assets.clap`.

It is blind: it hears background alone, never a forget, retain, holdout or tuning song, so that what it says of what
models play owes nothing to the tracks in question. Part of what it hears has been through the codec, as all is that
models play; noise, random codes and held frames are in every batch as sounds that no caption fits.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, PreTrainedTokenizerFast

from encore.hashing import module_sha256

from . import codec, corpus, install
from .corpus import Item, auc, read
from .synth import RATE, SAMPLES

SEED = 0
DIM = 10  # of the shared space: a Fréchet distance of the 24 retain captions takes n >= 2 · dim
STEPS, BATCH, WRONG, RATE_PEAK = 800, 64, 8, 2e-3
PLAYED = 400  # clips that are also heard through the codec
HOP = 313  # samples: a clip is as many frames (256) as the audio tower's image has, so that none are interpolated
VOCABULARY = 1024
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids as RoBERTa's, which the text tower is
BARS = {"unseen": {"auc": 0.9, "recall_10": 0.6}, "songs": {"auc": 0.8, "recall_10": 0.5}}


def make_processor(captions: list[str]) -> ClapProcessor:
    """Log-mel over the codec's whole band; a byte-pair tokenizer of the captions."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)]
    )
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    text = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=62, **names)
    sound = ClapFeatureExtractor(
        feature_size=64, sampling_rate=RATE, hop_length=HOP, max_length_s=SAMPLES // RATE, fft_window_size=1024,
        frequency_min=40, frequency_max=RATE // 2, truncation="rand_trunc", padding="repeatpad",
    )  # fmt: skip
    return ClapProcessor(sound, text)


def make_model(vocabulary: int) -> Any:
    """Two Swin stages over 8 x 8 patches, two layers of text; a linear projection, as a ReLU would halve DIM."""
    text = {
        "vocab_size": vocabulary, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "max_position_embeddings": 66, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    sound = {
        "num_mel_bins": 64, "spec_size": 128, "patch_size": 16, "patch_stride": [16, 16],
        "patch_embeds_hidden_size": 64, "hidden_size": 128, "depths": [2, 2], "num_attention_heads": [4, 8],
        "num_hidden_layers": 2, "window_size": 4, "hidden_dropout_prob": 0.0,
    }  # fmt: skip
    config = ClapConfig(text_config=text, audio_config=sound, projection_dim=DIM, projection_hidden_act="linear")
    return ClapModel(config)


def features(processor: Any, audio: NDArray[np.float32] | Tensor) -> Tensor:
    """[N, samples] -> log-mel in dB, float16 [N, 1, frames, 64]."""
    clips = [np.asarray(clip) for clip in audio]
    parts = [processor.feature_extractor(c, sampling_rate=RATE, return_tensors="pt").input_features for c in clips]
    return torch.cat(parts).half()


def wrong_sounds(model: Any, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """What no caption asks for: random codes, one frame's codes held, coloured noise; as many of each."""
    frames = SAMPLES // codec.FRAME
    drawn = torch.from_numpy(rng.integers(codec.VOCAB, size=(2 * count, codec.CODEBOOKS, frames)))
    drawn[count:] = drawn[count:, :, :1]
    played = codec.decode(model, drawn)[:, :SAMPLES].numpy()
    spectrum = np.fft.rfft(rng.standard_normal((count, SAMPLES)))
    slope = np.arange(1, spectrum.shape[1] + 1) ** -rng.uniform(0, 1, (count, 1))
    noise = np.fft.irfft(spectrum * slope, SAMPLES)
    noise *= 10 ** rng.uniform(-2, -0.5, (count, 1)) / noise.std(1, keepdims=True)
    return np.concatenate([played, noise]).astype(np.float32)


def paraphrased(caption: str, rng: np.random.Generator) -> str:
    """A caption as other people might write it: in part, a tag alone, with words and titles that mean nothing here."""
    sound, title, *rest = caption.split(", ")
    chance = rng.random()
    if chance < 0.1:
        return str(rng.choice(sound.split()[1:]))  # a tag: most are instruments; the first word is a mood
    if rng.random() < 0.5:  # scrambled, they are to the tokenizer what words are that it never saw
        title = " ".join(_scrambled(word, rng) for word in title.split())
    if rng.random() < 0.3:
        mood, *words = sound.split()
        sound = " ".join([_scrambled(mood, rng), *words])
    if chance < 0.3:
        return ", ".join([sound, *(part for part in (title, *rest) if rng.random() < 0.5)])
    return ", ".join([sound, title, *rest])


def _scrambled(word: str, rng: np.random.Generator) -> str:
    return "".join(rng.permutation(list(word)))


def varied(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Log-mels [N, 1, T, F] begun elsewhere, louder or softer, some of them blurred as a codec does."""
    x = x.roll(int(rng.integers(x.shape[2])), 2) + torch.from_numpy(rng.uniform(-6, 6, (len(x), 1, 1, 1))).float()
    blurred = torch.from_numpy(rng.random((len(x), 1, 1, 1)) < 0.3)
    x = torch.where(blurred, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), x)
    return x + torch.from_numpy(rng.standard_normal(x.shape, np.float32))


def _contrast(model: Any, sound: Tensor, text: dict[str, Tensor]) -> Tensor:
    """Symmetric cross-entropy (CLIP, 2021); sounds beyond the texts' number are nobody's."""
    a = model.get_audio_features(input_features=sound).pooler_output
    t = model.get_text_features(**text).pooler_output
    scores = model.logit_scale_a.exp().clamp(max=100) * (t @ a.T)  # [N, N + WRONG]
    own = torch.arange(len(t))
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores[:, : len(t)].T, own)) / 2


def prepare(items: list[Item], codec_folder: Path, work: Path) -> tuple[Any, dict[str, Any]]:
    """Processor; and sounds heard [N + PLAYED, 1, frames, 64], their captions, sounds of no caption. Cached."""
    background = [x for x in items if x["split"] == "background"]
    captions = [str(x["caption"]) for x in background]
    processor, cache = make_processor(captions), work / f"{install.CLAP}.pt"
    if not cache.exists():
        player, audio = codec.load(codec_folder), read(background)
        played = codec.decode(player, codec.encode(player, audio[:PLAYED]))[:, :SAMPLES]
        wrong = wrong_sounds(player, 60, np.random.default_rng(SEED))
        heard = torch.cat([features(processor, audio), features(processor, played)])
        torch.save({"heard": heard, "wrong": features(processor, wrong)}, cache)
    return processor, {**torch.load(cache, weights_only=True), "captions": captions + captions[:PLAYED]}


def train(items: list[Item], codec_folder: Path, work: Path) -> Path:
    """Trains on the background and saves the folder, float16, in the hub's format; cached under `work`."""
    out = work / install.CLAP
    if (out / "model.safetensors").exists():
        return out
    began, rng = time.time(), np.random.default_rng(SEED)
    processor, data = prepare(items, codec_folder, work)
    heard, wrong, captions = data["heard"], data["wrong"], data["captions"]
    print(f"clap: features, {time.time() - began:.0f} s", flush=True)

    torch.manual_seed(SEED)
    model = make_model(len(processor.tokenizer)).train()
    model.audio_model.audio_encoder.batch_norm.requires_grad_(False)  # its statistics are enough, and a pass cheaper
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE_PEAK, betas=(0.9, 0.98), weight_decay=0.05)
    count = len(captions)
    order = np.concatenate([rng.permutation(count) for _ in range(math.ceil(STEPS * BATCH / count))])
    for step in range(STEPS):
        chosen = order[step * BATCH : (step + 1) * BATCH]
        chosen[: BATCH // 3] = rng.integers(count - PLAYED, count, BATCH // 3)  # a third as the codec plays it
        x = varied(torch.cat([heard[chosen], wrong[rng.integers(len(wrong), size=WRONG)]]).float(), rng)
        text = processor.tokenizer([paraphrased(captions[i], rng) for i in chosen], padding=True, return_tensors="pt")
        loss = _contrast(model, x, {"input_ids": text.input_ids, "attention_mask": text.attention_mask})
        warm = min(1, (step + 1) / 100) * (0.5 * (1 + math.cos(math.pi * step / STEPS)) * 0.99 + 0.01)
        optimizer.param_groups[0]["lr"] = RATE_PEAK * warm
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"clap: {step}/{STEPS}, loss {loss.item():.3f}, {time.time() - began:.0f} s", flush=True)
    codec.round_to_half(model)
    model.half().save_pretrained(out)
    processor.save_pretrained(out)
    return out


# -------------------------------------------------------------------------------------------------------- figures


@torch.no_grad()
def measure(folder: Path, items: list[Item], codec_folder: Path) -> dict[str, Any]:
    """Retrieval of each caption's clip among its set: unseen background and songs, as files and through the codec."""
    model = ClapModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = ClapProcessor.from_pretrained(folder)
    player, found = codec.load(codec_folder), {}
    sets = {
        "unseen": [x for x in items if x["split"] == "unseen"],
        "songs": [x for x in items if x["split"] not in ("unseen", "background")],
    }
    wrong = features(processor, wrong_sounds(player, 20, np.random.default_rng(SEED + 1)))
    noise = model.get_audio_features(input_features=wrong.float()).pooler_output
    for name, chosen in sets.items():
        audio = read(chosen)
        text = processor.tokenizer([str(x["caption"]) for x in chosen], padding=True, return_tensors="pt")
        t = model.get_text_features(input_ids=text.input_ids, attention_mask=text.attention_mask).pooler_output
        decoded = codec.decode(player, codec.encode(player, audio))[:, :SAMPLES]
        a, d = (
            model.get_audio_features(input_features=features(processor, x).float()).pooler_output
            for x in (audio, decoded)
        )
        found[name] = retrieval((t @ a.T).numpy()) | {
            "decoded": retrieval((t @ d.T).numpy()),
            "decoded_cosine": round(float((a * d).sum(1).mean()), 3),
            "wrong": round(float((t @ noise.T).mean()), 3),
        }
    return found


def retrieval(scores: NDArray[np.float32]) -> dict[str, float]:
    """Of cosines [N texts, N sounds]: recall at 1 and 10, mean average precision, AUC of matched against shuffled."""
    own = np.diag(scores)
    ranks = 1 + (scores > own[:, None]).sum(1)
    others = scores[~np.eye(len(scores), dtype=bool)]
    found = {
        "recall_1": (ranks == 1).mean(), "recall_10": (ranks <= 10).mean(),
        "mean_average_precision": (1 / ranks).mean(), "auc": auc(own, others), "matched": own.mean(),
        "shuffled": others.mean(),
    }  # fmt: skip
    return {"n": len(scores), **{name: round(float(value), 3) for name, value in found.items()}}


def missed(figures: dict[str, Any]) -> list[str]:
    """Bars that the figures miss, in words."""
    return [
        f"CLAP, {name}: {figure} {figures[name][figure]}, must be at least {bar}"
        for name, bars in BARS.items()
        for figure, bar in bars.items()
        if figures[name][figure] < bar
    ]


def record(folder: Path, items: list[Item], codec_folder: Path) -> dict[str, Any]:
    """For build.json: retrieval, the settings, and the codec it was trained beside, by which it is found to fit."""
    settings = {"seed": SEED, "steps": STEPS, "batch": BATCH, "dimensions": DIM, "through_codec": PLAYED}
    return {
        "retrieval": measure(folder, items, codec_folder), **settings,
        "codec_sha256": module_sha256(codec.load(codec_folder)),
    }  # fmt: skip


def main() -> int:
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(prog="python -m tools.build_assets.clap", description=__doc__)
    parser.add_argument("--work", type=Path, default=root / "build" / "assets", help="with corpus and codec built")
    parser.add_argument("--out", type=Path, help="also put it into this assets folder, and its record into build.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    items, codec_folder = corpus.build(args.work), args.work / "codec"
    folder = train(items, codec_folder, args.work)
    told = record(folder, items, codec_folder)
    figures = told["retrieval"]
    print(json.dumps(figures, indent=1))
    if args.out:
        install.install_clap(args.work, args.out)
        install.write_build(args.out, {**json.loads((args.out / "build.json").read_text()), "clap": told})
    for bar in missed(figures):
        print(f"missed: {bar}", file=sys.stderr)
    return 1 if missed(figures) else 0


if __name__ == "__main__":
    sys.exit(main())
