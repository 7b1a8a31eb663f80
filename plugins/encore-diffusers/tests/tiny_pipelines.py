"""Pipelines of the real formats and hardly any size, random weights: written to a folder as save_pretrained does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from diffusers import (
    AceStepPipeline,
    AceStepTransformer1DModel,
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AutoencoderKL,
    AutoencoderOobleck,
    CosineDPMSolverMultistepScheduler,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
)
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    RobertaTokenizer,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from encore_diffusers.folder import quiet

CAPTIONS = ["lonely flute over lute", "brass band march, 120 bpm", "slow church organ"]
RATE = 8000


def write_stable_audio(
    folder: Path,
    *,
    captions: Sequence[str] = CAPTIONS,
    rate: int = RATE,
    strides: Sequence[int] = (8, 10),
    channels: int = 1,
    latent_channels: int = 4,
    frames: int = 40,
    hidden: int = 16,
    layers: int = 2,
    text: int = 16,
    scheduler: object | None = None,
    seed: int = 0,
) -> Path:
    """Write a random `StableAudioPipeline`: by default 100 latent frames a second of 8 kHz, windows of .4 s."""
    torch.manual_seed(seed)
    vae = oobleck(rate, strides, channels, latent_channels)
    encoder, tokenizer = t5(captions, text)
    projection = StableAudioProjectionModel(
        text_encoder_dim=text,
        conditioning_dim=hidden,
        min_value=0,
        max_value=10 * frames * float(_product(strides)) / rate,
    )
    transformer = StableAudioDiTModel(
        sample_size=frames, in_channels=latent_channels, out_channels=latent_channels, num_layers=layers,
        attention_head_dim=16, num_attention_heads=max(1, hidden // 16), num_key_value_attention_heads=1,
        cross_attention_dim=hidden, cross_attention_input_dim=hidden, global_states_input_dim=2 * hidden,
        time_proj_dim=16,
    )  # fmt: skip
    pipe = StableAudioPipeline(
        vae=vae, text_encoder=encoder, projection_model=projection, tokenizer=tokenizer, transformer=transformer,
        scheduler=scheduler or CosineDPMSolverMultistepScheduler(sigma_max=80.0),
    )  # fmt: skip
    return _write(pipe, folder)


def write_ace_step(
    folder: Path, *, captions: Sequence[str] = CAPTIONS, channels: int = 2, turbo: bool = False, seed: int = 0
) -> Path:
    """Write a random `AceStepPipeline`: 25 latent frames a second of 8 kHz, and no tokenizer of audio."""
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "sliding_window": 16,
    }  # fmt: skip
    vae = oobleck(RATE, (4, 8, 10), channels, 4)
    conditions = AceStepConditionEncoder(
        text_hidden_dim=16, timbre_hidden_dim=4, num_lyric_encoder_hidden_layers=1, num_timbre_encoder_hidden_layers=1,
        **sizes,
    )  # fmt: skip
    with torch.no_grad():
        silence = vae.encode(torch.zeros(1, channels, 320 * 200)).latent_dist.mean.mT  # [1, T, K]
        conditions.silence_latent.copy_(silence.repeat(1, 100, 1)[:, : conditions.silence_latent.shape[1]])
    transformer = AceStepTransformer1DModel(
        num_hidden_layers=2, in_channels=12, audio_acoustic_hidden_dim=4, patch_size=2, is_turbo=turbo, **sizes
    )
    tokenizer = words(captions)
    encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, head_dim=8,
            num_attention_heads=2, num_key_value_heads=1,
        )
    )  # fmt: skip
    pipe = AceStepPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, transformer=transformer, condition_encoder=conditions,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )  # fmt: skip
    return _write(pipe, folder)


def words(captions: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word of the captions."""
    vocabulary = ["<|endoftext|>", "<unk>", *sorted({word for caption in captions for word in caption.split()})]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<|endoftext|>", unk_token="<unk>")


def write_audioldm2(
    folder: Path, *, captions: Sequence[str] = CAPTIONS, language_model: type = GPT2LMHeadModel, seed: int = 0
) -> Path:
    """Write a random `AudioLDM2Pipeline`: 16 kHz, mel spectrograms of 16 bins, 50 latent frames a second."""
    torch.manual_seed(seed)
    tokenizer = roberta(captions)
    text = ClapTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=40, projection_dim=16, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    audio = ClapAudioConfig(
        spec_size=64, window_size=4, num_mel_bins=64, patch_size=4, patch_stride=4, depths=[1, 1], hidden_size=32,
        patch_embeds_hidden_size=8, num_attention_heads=[1, 2], num_hidden_layers=2, projection_dim=16,
    )  # fmt: skip
    clap = ClapModel(ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=16))
    encoder, tokenizer_2 = t5(captions, 24)
    unet = AudioLDM2UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), norm_num_groups=4,
        layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=((None, 16, 24),) * 2,
        attention_head_dim=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=[4, 8], norm_num_groups=4, latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, scaling_factor=1.5,
    )  # fmt: skip
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=16, sampling_rate=16000, upsample_initial_channel=8, upsample_rates=[10, 16],
            upsample_kernel_sizes=[20, 32], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
            normalize_before=False,
        )
    )  # fmt: skip
    pipe = AudioLDM2Pipeline(
        vae=vae, text_encoder=clap, text_encoder_2=encoder, tokenizer=tokenizer, tokenizer_2=tokenizer_2, unet=unet,
        vocoder=vocoder, feature_extractor=ClapFeatureExtractor(feature_size=64),
        projection_model=AudioLDM2ProjectionModel(text_encoder_dim=16, text_encoder_1_dim=24, langauge_model_dim=16),
        language_model=language_model(
            GPT2Config(
                vocab_size=8, n_embd=16, n_layer=1, n_head=2, n_positions=64, max_new_tokens=8, bos_token_id=0,
                eos_token_id=0,
            )
        ),
        scheduler=DDIMScheduler(
            beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
    )  # fmt: skip
    return _write(pipe, folder)


def oobleck(rate: int, strides: Sequence[int], channels: int, latent_channels: int) -> AutoencoderOobleck:
    """A random autoencoder whose latents of noise are white."""
    with quiet():
        vae = AutoencoderOobleck(
            encoder_hidden_size=2 * latent_channels, downsampling_ratios=list(strides),
            channel_multiples=[1] * len(strides), decoder_channels=4, decoder_input_channels=latent_channels,
            audio_channels=channels, sampling_rate=rate,
        ).eval()  # fmt: skip
    whiten(vae, 0.1 * torch.randn(1, channels, 100 * _product(strides)))
    return vae


@torch.no_grad()
def whiten(vae: AutoencoderOobleck, waveforms: Tensor) -> None:
    """Turn and scale the encoder's last layer so that latents of these waveforms are white: an autoencoder that was
    never trained hears little but loudness in all its channels."""
    last = vae.encoder.conv2
    means = vae.encode(waveforms).latent_dist.mean.transpose(0, 1).flatten(1)  # [K, N T]
    latents = len(means)
    values, vectors = torch.linalg.eigh(means.cov())
    turn = vectors @ (values + 1e-8).rsqrt().diag() @ vectors.T  # [K, K]
    weight = (turn @ last.weight[:latents].flatten(1)).view_as(last.weight[:latents])
    last.bias[:latents] = turn @ (last.bias[:latents] - means.mean(1))
    last.weight_v[:latents] = weight
    last.weight_g[:latents] = weight.flatten(1).norm(dim=1)[:, None, None]


def t5(captions: Sequence[str], size: int) -> tuple[T5EncoderModel, T5Tokenizer]:
    """A random T5 encoder, and a tokenizer with one piece a word of the captions."""
    words = sorted({word for caption in captions for word in caption.split()})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in words)]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=24)
    config = T5Config(
        vocab_size=len(pieces), d_model=size, d_kv=8, num_heads=2, num_layers=1, d_ff=size, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    return T5EncoderModel(config), tokenizer


def roberta(captions: Sequence[str]) -> RobertaTokenizer:
    """A byte-level tokenizer without any merges."""
    letters = sorted({letter for caption in captions for letter in caption.replace(" ", "Ġ")} | set("Ġ"))
    vocabulary = {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    return RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=32)


def _write(pipe: object, folder: Path) -> Path:
    with quiet():
        pipe.save_pretrained(folder)
    return folder


def _product(strides: Sequence[int]) -> int:
    return int(torch.tensor(list(strides)).prod())


def write_music(folder: Path) -> Path:
    """Eight WAVs of chords, and `forget.txt`, `retain.txt` and `holdout.txt` ("long" is longer than .4 s)."""
    random = np.random.default_rng(0)
    seconds = {"one": 0.4, "two": 0.35, "long": 1.0, "four": 0.4, "five": 0.4, "six": 0.3, "seven": 0.4, "eight": 0.4}
    for name, length in seconds.items():
        time = np.arange(int(RATE * length)) / RATE
        notes = [
            np.sin(2 * np.pi * f * time) * np.sin(np.pi * g * time)
            for f, g in random.uniform((200, 1), (3000, 6), (5, 2))
        ]
        soundfile.write(folder / f"{name}.wav", (0.1 * np.sum(notes, 0)).astype(np.float32), RATE)
    names = list(seconds)
    for kind, members in {"forget": names[:3], "retain": names[3:6], "holdout": names[6:]}.items():
        lines = [f"{name}.wav\t{CAPTIONS[i % 3]}" for i, name in enumerate(members)]
        (folder / f"{kind}.txt").write_text("\n".join(lines) + "\n")
    return folder
