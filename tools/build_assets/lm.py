"""The tiny MusicGen: model, data, training of base, gold and gold2. `python -m tools.build_assets.lm base --work W`.

A gold for any other list: `python -m tools.build_assets.lm NAME --without LIST --seed 0 --from-installed --work W`.

The codec and the frozen random text encoder are rounded to float16 before any code or text state is computed, so that a
shipped float16 folder, loaded as float32, gives the very inputs the decoder was trained on.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    EncodecFeatureExtractor,
    GenerationConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenProcessor,
    T5Config,
    T5Tokenizer,
)

from encore.assets import FOLDER

from . import codec, corpus
from .codec import CODEBOOKS, VOCAB
from .corpus import Item
from .synth import RATE

TEXT_SEED = 0
RUNS = {"base": 0, "gold": 0, "gold2": 1}  # run -> seed; the golds never see the forget set
TUNING = "tuning-gold"  # base without the tuning split's forget set: for choosing settings, never shipped
SEEDS = {**RUNS, TUNING: 0}
FOLDERS = {"base": "encore-tiny", "gold": "encore-tiny-gold", "gold2": "encore-tiny-gold2"}  # what is shipped
LEFT_OUT = {"base": (), "gold": ("forget",), "gold2": ("forget",), TUNING: ("tune_forget",)}
IGNORE = -100


@dataclass(frozen=True)
class Shape:
    """The decoder's sizes, and the frames of the clips that it is trained on."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    frames: int = 250
    gain: float = 1.0  # of the untrained token embeddings, which else are tiny beside the positions


@dataclass(frozen=True)
class Phase:
    """One stretch of training: it starts at the folder that the phase before saved, with a fresh optimizer."""

    steps: int
    songs: int  # a batch
    background: int  # a batch
    rate: float
    dropout: float
    weight_decay: float = 0.05
    condition_dropout: float = 0.1
    start_weight: float = 20.0  # see `fit`: the start has only the caption to go by
    bfloat16: bool = False  # products in bfloat16: twice as fast where the processor has it


# First the source, which takes background; then the songs by heart, with enough background to keep the source.
PHASES = (Phase(1250, 7, 7, 2e-3, 0.1), Phase(400, 11, 3, 1.5e-3, 0.05))


def make_tokenizer(captions: list[str], size: int = 512) -> T5Tokenizer:
    """Unigram tokenizer trained on the captions, in T5's own form."""
    tokenizer = Tokenizer(models.Unigram())
    space = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    vocab = json.loads(tokenizer.to_str())["model"]["vocab"]
    return T5Tokenizer(vocab=[(piece, score) for piece, score in vocab], extra_ids=0)


def make_model(codec_folder: Path, vocab: int, seed: int, dropout: float, shape: Shape = Shape()) -> Any:
    """MusicGen from config alone (from parts it would lose its causal mask), its codec and text encoder frozen."""
    trained = codec.load(codec_folder)
    text = T5Config(
        vocab_size=vocab,
        d_model=64,
        d_kv=16,
        num_heads=4,
        num_layers=2,
        d_ff=128,
        num_decoder_layers=0,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,  # type: ignore[call-arg]  # any config takes it
    )
    decoder = MusicgenDecoderConfig(
        vocab_size=VOCAB,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        ffn_dim=4 * shape.hidden,
        num_codebooks=CODEBOOKS,
        max_position_embeddings=2 << shape.frames.bit_length(),
        pad_token_id=VOCAB,
        bos_token_id=VOCAB,
        dropout=dropout,
        attention_dropout=0.0,
        activation_dropout=0.0,
    )
    decoder.decoder_start_token_id = VOCAB
    config = MusicgenConfig(text_encoder=text, audio_encoder=trained.config, decoder=decoder)
    torch.manual_seed(TEXT_SEED)
    shared = MusicgenForConditionalGeneration(config)
    torch.manual_seed(1000 + seed)
    model = MusicgenForConditionalGeneration(config)
    with torch.no_grad():
        for table in model.decoder.model.decoder.embed_tokens:
            table.weight.mul_(shape.gain)
    model.text_encoder.load_state_dict(shared.text_encoder.state_dict())
    model.audio_encoder.load_state_dict(trained.state_dict())
    codec.round_to_half(model.text_encoder)
    model.generation_config = GenerationConfig(
        max_length=shape.frames + CODEBOOKS,
        do_sample=False,
        guidance_scale=1.0,
        pad_token_id=VOCAB,
        bos_token_id=VOCAB,
        decoder_start_token_id=VOCAB,
    )
    model.freeze_audio_encoder()
    model.freeze_text_encoder()
    return model


def delay(codes: Tensor) -> Tensor:
    """Labels in the delay pattern: codebook k starts at step k; [N, K, T] -> [N, K, T + K − 1], IGNORE elsewhere.

    Steps past T − 1 are left out, as in generation, so codebook k has T − k valid steps.
    """
    n, books, frames = codes.shape
    labels = codes.new_full((n, books, frames), IGNORE)
    for k in range(books):
        labels[:, k, k:] = codes[:, k, : frames - k]
    return labels


class Data:
    """Codes, delayed labels and inputs, and the frozen text states of a list of clips.

    Attributes: codes [N, K, T]; labels [N, K, T]; inputs [N, K, T]; text [N, S, D]; mask, ids [N, S].
    """

    def __init__(self, model: Any, tokenizer: T5Tokenizer, codes: Tensor, captions: list[str]):
        self.codes, self.labels = codes, delay(codes)
        self.inputs = torch.full_like(self.labels, VOCAB)
        self.inputs[:, :, 1:] = self.labels[:, :, :-1]
        self.inputs[self.inputs == IGNORE] = VOCAB
        tokens = tokenizer(captions, padding=True, return_tensors="pt")
        self.ids, self.mask = tokens["input_ids"], tokens["attention_mask"]
        model.text_encoder.eval()
        with torch.no_grad():
            parts = zip(self.ids.split(64), self.mask.split(64), strict=True)
            self.text = torch.cat(
                [model.text_encoder(input_ids=i, attention_mask=m).last_hidden_state for i, m in parts]
            )

    def logits(self, model: Any, index: Tensor, drop: float = 0.0) -> Tensor:
        """[n, K, T, V]. A dropped condition is an all-zero mask, which also zeroes the text states."""
        mask = self.mask[index].clone()
        if drop:
            mask[torch.rand(len(index)) < drop] = 0
        width = int(self.mask[index].sum(1).max())
        out = model(
            encoder_outputs=(self.text[index, :width],),
            attention_mask=mask[:, :width],
            decoder_input_ids=self.inputs[index].flatten(0, 1),
            use_cache=False,
        )
        return out.logits.view(len(index), CODEBOOKS, -1, VOCAB)

    def losses(self, logits: Tensor, index: Tensor) -> Tensor:
        """Cross-entropy of every token, 0 where masked, [n, K, T]."""
        labels = self.labels[index]
        flat = F.cross_entropy(
            logits.reshape(-1, VOCAB),
            labels.reshape(-1),
            ignore_index=IGNORE,
            reduction="none",
        )
        return flat.view(labels.shape)

    @torch.no_grad()
    def nll(self, model: Any, index: Tensor) -> Tensor:
        """Mean negative log-likelihood over a clip's unmasked tokens, nats/token, [n]."""
        model.eval()
        parts = []
        for part in index.split(8):
            loss, valid = self.losses(self.logits(model, part), part), self.labels[part] != IGNORE
            parts.append(loss.sum((1, 2)) / valid.sum((1, 2)))
        return torch.cat(parts)


def all_codes(items: list[Item], work: Path, name: str = "codes.pt") -> Tensor:
    """Codes of every clip, one clip at a time as a user would, [N, K, T]; cached in `work`/`name`."""
    cache = work / name
    if not cache.exists():
        model = codec.load(work / "codec")
        parts = [codec.encode(model, corpus.read([x])) for x in items]
        torch.save(torch.cat(parts).to(torch.int16), cache)
    return torch.load(cache, weights_only=True).long()


def splits(items: list[Item]) -> dict[str, Tensor]:
    """Split -> indices."""
    names = dict.fromkeys(x["split"] for x in items)
    return {s: torch.tensor([i for i, x in enumerate(items) if x["split"] == s]) for s in names}


def installed(work: Path) -> None:
    """Takes codec and tokenizer from the installed base, so that what is trained under `work` shares its codes."""
    model, tokenizer = load(FOLDER / FOLDERS["base"])
    if not (work / "codec").exists():
        model.audio_encoder.half().save_pretrained(work / "codec")
    tokenizer.save_pretrained(work / "tokenizer")


def without(path: Path, items: list[Item]) -> set[str]:
    """Ids of a list of tracks: an id, an `id:` line or a path a line, as `encore forget --tracks` takes them.

    Raises:
        SystemExit: a line that names no track the models are trained on.
    """
    known = {x["id"] for x in items if x["split"] not in ("holdout", "unseen")}
    lines = [line.strip().removeprefix("id:") for line in path.read_text().splitlines()]
    ids = {x if x in known else Path(x).stem for x in lines if x and not x.startswith("#")}
    if unknown := sorted(ids - known):
        raise SystemExit(f"{path} names tracks that no model is trained on: {', '.join(unknown)}")
    return ids


def prepare(items: list[Item], work: Path) -> tuple[T5Tokenizer, Tensor]:
    """Tokenizer and codes, both cached under `work`."""
    return tokenizer_of(items, work), all_codes(items, work)


def tokenizer_of(items: list[Item], work: Path) -> T5Tokenizer:
    """The tokenizer trained on the items' captions, cached in `work`/tokenizer."""
    folder = work / "tokenizer"
    if not folder.exists():
        make_tokenizer([x["caption"] for x in items]).save_pretrained(folder)
    return T5Tokenizer.from_pretrained(folder)


def _cycle(index: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices, drawn by whole shuffles."""
    rounds = -(-count // len(index))
    return torch.cat([index[torch.randperm(len(index), generator=generator)] for _ in range(rounds)])[:count]


def begin(start: Path | None, codec_folder: Path, vocab: int, seed: int, dropout: float, shape: Shape = Shape()) -> Any:
    """The model that a phase starts with: that of the phase before in `start`, or an untrained one."""
    if start is None:
        return make_model(codec_folder, vocab, seed, dropout, shape)
    config = MusicgenConfig.from_pretrained(start)
    config.decoder.dropout = dropout
    model = load(start, config)[0]
    model.freeze_audio_encoder()
    model.freeze_text_encoder()
    return model


def fit(
    model: Any, data: Data, songs: Tensor, ground: Tensor, recipe: Phase, seed: int, watch: dict[str, Tensor]
) -> None:
    """Trains a model for one phase, in place.

    Args:
        model: from `begin`.
        data: of all clips.
        songs: indices of the clips to memorise, drawn by whole shuffles.
        ground: indices of the background clips, likewise.
        recipe: steps, batch and rate.
        seed: of batches and dropout.
        watch: clips whose mean NLL is printed now and then, by what they are called.
    """
    generator = torch.Generator().manual_seed(2000 + seed)
    drawn = [
        (_cycle(index, recipe.steps * count, generator), count)
        for index, count in ((songs, recipe.songs), (ground, recipe.background))
        if count
    ]
    # Frame t weighs 1 + start_weight·exp(−t/2), or generation from the caption alone fails at its first frames.
    weight = 1 + recipe.start_weight * torch.exp(-torch.arange(data.codes.shape[-1]) / 2)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay)
    torch.manual_seed(3000 + seed)
    if recipe.bfloat16:
        model.set_attn_implementation("eager")  # the other is slower in bfloat16
    began, seen = time.time(), []
    for step in range(recipe.steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps)) * 0.98 + 0.02
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * min(1, (step + 1) / 60) * cosine
        model.train()
        model.text_encoder.eval()
        model.audio_encoder.eval()
        index = torch.cat([x[step * n :][:n] for x, n in drawn])
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            logits = data.logits(model, index, recipe.condition_dropout)
        losses = data.losses(logits.float(), index)
        w = weight * (data.labels[index] != IGNORE)
        loss = (losses * w).sum() / w.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen.append(loss.item())
        if (step + 1) % 100 == 0:
            now = ", ".join(f"{name} {data.nll(model, at).mean():.3f}" for name, at in watch.items())
            mean = sum(seen[-100:]) / 100
            print(f"step {step + 1}, loss {mean:.3f}, {now}, {time.time() - began:.0f} s", flush=True)
    codec.round_to_half(model)


def train(run: str, work: Path, phase: int, seed: int, left_out: set[str]) -> None:
    """Trains one phase of a run and saves its folder under `work`, float16, in transformers' own form.

    Args:
        run: its name, that of its folder if it is none of `FOLDERS`.
        work: where corpus, codec, tokenizer and codes are.
        phase: index into `PHASES`.
        seed: of weights, batches and dropout.
        left_out: ids of tracks that it is never trained on.
    """
    out = folder(run, work, phase)
    if (out / "processor_config.json").exists():
        return
    torch.set_num_threads(1)
    seed, recipe, items = seed + 100 * phase, PHASES[phase], corpus.build(work)
    tokenizer, codes = prepare(items, work)
    start = folder(run, work, phase - 1) if phase else None
    model = begin(start, work / "codec", len(tokenizer), seed, recipe.dropout)
    data, where = Data(model, tokenizer, codes, [x["caption"] for x in items]), splits(items)
    taught = torch.tensor([x["id"] not in left_out for x in items])
    songs = torch.cat([where[s] for s in ("retain", "tune_forget", "tune_retain", "forget")])
    ground = where["background"]
    watch = {s: where[s][:10] for s in ("forget", "retain", "holdout", "unseen")}
    print(f"{run}: phase {phase}", flush=True)
    fit(model, data, songs[taught[songs]], ground[taught[ground]], recipe, seed, watch)
    save(model, tokenizer, out)


def folder(run: str, work: Path, phase: int = len(PHASES) - 1) -> Path:
    """Where a phase of a run lies; the last one under `models`."""
    return work / ("models" if phase == len(PHASES) - 1 else f"models.{phase}") / FOLDERS.get(run, run)


def save(model: Any, tokenizer: T5Tokenizer, out: Path) -> None:
    """Writes the folder that `MusicgenForConditionalGeneration` and `AutoProcessor` load."""
    for part in (model.config.text_encoder, model.config.audio_encoder, model.config.decoder):
        part.dtype = torch.float16
    model.config.audio_encoder._name_or_path = ""  # else the builder's own path goes out
    model.half().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # safetensors writes for its owner alone
    MusicgenProcessor(EncodecFeatureExtractor(feature_size=1, sampling_rate=RATE), tokenizer).save_pretrained(out)


def load(where: Path, config: MusicgenConfig | None = None) -> tuple[Any, T5Tokenizer]:
    """The model in float32, and its tokenizer."""
    model = MusicgenForConditionalGeneration.from_pretrained(where, config=config, dtype=torch.float32)
    return model.eval(), T5Tokenizer.from_pretrained(where)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.build_assets.lm", description=__doc__.splitlines()[0])
    parser.add_argument("run", help=f"one of {', '.join(SEEDS)}, or the name of a gold for the list --without")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--without", type=Path, metavar="LIST", help="train on all tracks but these")
    parser.add_argument("--seed", type=int, help="default: the run's, else 0")
    parser.add_argument("--from-installed", action="store_true", help="use the installed models' codec and tokenizer")
    parser.add_argument("--phases", type=int, default=len(PHASES), help="stop after that many")
    args = parser.parse_args()
    if (args.run in SEEDS) == (args.without is not None):
        parser.error(f"give either one of {', '.join(SEEDS)}, or another name and --without LIST")
    if args.from_installed:
        installed(args.work)
    items = corpus.build(args.work)
    if args.without:
        left_out = without(args.without, items)
    else:
        left_out = {x["id"] for x in items if x["split"] in LEFT_OUT[args.run]}
    for phase in range(args.phases):
        train(args.run, args.work, phase, SEEDS.get(args.run, 0) if args.seed is None else args.seed, left_out)


if __name__ == "__main__":
    main()
