"""Configurations, both ways: transformers' `config.json` and audiocraft's `xp.cfg`.

What one of the libraries can't express is refused, with the option named: a converted model computes what the other
did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import EncodecConfig, GenerationConfig, MusicgenConfig, MusicgenDecoderConfig, T5Config

from encore.errors import InputError
from encore_audiocraft.text import NAME_OF_BESIDE

WINDOW, POSITIONS = 30.0, 2048  # seconds MusicGen was trained on; what the published checkpoints say they have room for
KNOWN = (
    "t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b", "google/flan-t5-small", "google/flan-t5-base",
    "google/flan-t5-large",
)  # fmt: skip
TEXT = "description"
OWN = "encore"  # an entry of our own in xp.cfg, which audiocraft does not read
# What the other library does without being asked, option by option.
SAME_LANGUAGE = {
    "norm_first": True, "norm": "layer_norm", "activation": "gelu", "positional_embedding": "sin", "max_period": 10_000,
    "positional_scale": 1.0, "bias_ff": False, "bias_attn": False, "bias_proj": False, "layer_scale": None,
    "past_context": None, "qk_layer_norm": False, "qk_layer_norm_cross": False, "kv_repeat": 1, "xpos": False,
}  # fmt: skip
DEFAULTS = {"norm_first": False, "bias_ff": True, "bias_attn": True, "bias_proj": True}  # where a checkpoint is silent
SAME_DECODER = {
    "activation_function": "gelu", "scale_embedding": False, "layerdrop": 0.0, "cross_attention_hidden_size": None,
    "tie_word_embeddings": False,
}  # fmt: skip
SAME_SEANET = {
    "activation": "ELU", "activation_params": {"alpha": 1.0}, "norm": "weight_norm", "disable_norm_outer_blocks": 0,
}  # fmt: skip
SEANET = {  # audiocraft's name -> transformers'
    "channels": "audio_channels", "dimension": "hidden_size", "n_filters": "num_filters",
    "n_residual_layers": "num_residual_layers", "kernel_size": "kernel_size", "last_kernel_size": "last_kernel_size",
    "residual_kernel_size": "residual_kernel_size", "dilation_base": "dilation_growth_rate", "compress": "compress",
    "lstm": "num_lstm_layers", "pad_mode": "pad_mode", "causal": "use_causal_conv",
}  # fmt: skip


def _refuse(found: Mapping[str, Any], wanted: Mapping[str, Any], model: str, library: str) -> None:
    for name, value in wanted.items():
        given = found.get(name, DEFAULTS.get(name, value))
        if given != value:
            raise InputError(f"{model} has {name} = {given}, which {library} has no option for")


def longest(cfg: DictConfig, frame_rate: float) -> int:
    """The longest window of a language model, in codec frames."""
    frames = round(min(WINDOW, cfg.dataset.segment_duration) * frame_rate)
    return min(frames, (cfg.get(OWN) or {}).get("max_frames", frames))


def _scale(feed_forward: int, width: int) -> float:
    """A factor by which audiocraft's `int(factor * width)` is the feed-forward width."""
    if feed_forward % width == 0:
        return feed_forward // width
    scale = feed_forward / width
    return scale if int(scale * width) == feed_forward else math.nextafter(scale, math.inf)


def transposed_layers(codec: EncodecConfig) -> list[int]:
    """Which layers of EnCodec's decoder are transposed convolutions: one a ratio, after a convolution and the LSTM."""
    return [3 + number * (2 + codec.num_residual_layers) for number in range(len(codec.upsampling_ratios))]


# -------------------------------------------------------------------------------------------------- to audiocraft


def to_audiocraft(config: MusicgenConfig, guidance: float, model: str) -> tuple[str, str]:
    """`config.json` -> YAML of the language model's `xp.cfg` and of the codec's.

    Args:
        guidance: of the generation config.
        model: what to call it in messages.

    Raises:
        InputError: it has something that audiocraft's model has not.
    """
    decoder, codec = config.decoder, config.audio_encoder
    _refuse(decoder.to_dict(), SAME_DECODER, model, "audiocraft")
    if decoder.audio_channels not in (1, 2):
        raise InputError(f"{model} has {decoder.audio_channels} channels, and audiocraft's have one or two")
    if codec.norm_type != "weight_norm" or codec.normalize or codec.chunk_length_s or codec.audio_channels != 1:
        raise InputError(
            f"the codec of {model} normalises, chunks or has {codec.audio_channels} channels: not supported"
        )
    if codec.codebook_dim != codec.hidden_size:
        raise InputError(f"the codec of {model} has codebook_dim {codec.codebook_dim}, {codec.hidden_size} is needed")
    stereo = decoder.audio_channels == 2
    delays = [k // decoder.audio_channels for k in range(decoder.num_codebooks)]
    frame_rate = codec.sampling_rate / math.prod(codec.upsampling_ratios)
    name = getattr(config.text_encoder, "_name_or_path", "") or ""
    language = {
        "device": "cpu", "dtype": "float32", "sample_rate": codec.sampling_rate, "channels": decoder.audio_channels,
        "lm_model": "transformer_lm",
        "transformer_lm": {
            "dim": decoder.hidden_size, "num_heads": decoder.num_attention_heads,
            "num_layers": decoder.num_hidden_layers, "hidden_scale": _scale(decoder.ffn_dim, decoder.hidden_size),
            "n_q": decoder.num_codebooks, "card": decoder.vocab_size, "dropout": decoder.dropout,
            "attention_dropout": decoder.attention_dropout, "emb_lr": None, "causal": True, "custom": False,
            "memory_efficient": True, "attention_as_float32": False, "cross_attention": False, "checkpointing": "none",
            "weight_init": "gaussian", "depthwise_init": "current", "zero_bias_init": True, "two_step_cfg": False,
            **SAME_LANGUAGE,
        },
        "codebooks_pattern": {
            "modeling": "delay", "delay": {"delays": delays, "flatten_first": 0, "empty_initial": 0},
        },
        "interleave_stereo_codebooks": {"use": stereo, "per_timestep": False},
        "classifier_free_guidance": {"training_dropout": 0.3, "inference_coef": guidance},
        "attribute_dropout": {},
        "fuser": {
            "cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1, "sum": [], "prepend": [],
            "cross": [TEXT], "input_interpolate": [],
        },
        "conditioners": {
            TEXT: {
                "model": "t5",
                "t5": {
                    "name": name if name in KNOWN else NAME_OF_BESIDE, "finetune": False, "word_dropout": 0.3,
                    "normalize_text": False,
                },
            }
        },
        "dataset": {"segment_duration": WINDOW},  # audiocraft's MusicGen refuses to be shorter than 18 seconds
        OWN: {"max_frames": min(round(WINDOW * frame_rate), decoder.max_position_embeddings - delays[-1])},
    }  # fmt: skip
    compression = {
        "device": "cpu", "sample_rate": codec.sampling_rate, "channels": 1, "compression_model": "encodec",
        "encodec": {
            "autoencoder": "seanet", "quantizer": "rvq", "sample_rate": codec.sampling_rate, "channels": 1,
            "causal": codec.use_causal_conv, "renormalize": False,
        },
        "seanet": {
            **{ours: getattr(codec, theirs) for ours, theirs in SEANET.items()}, **SAME_SEANET, "norm_params": {},
            "ratios": list(codec.upsampling_ratios), "true_skip": not codec.use_conv_shortcut, "encoder": {},
            "decoder": {
                "trim_right_ratio": codec.trim_right_ratio, "final_activation": None, "final_activation_params": None,
            },
        },
        "rvq": {
            "n_q": decoder.num_codebooks // decoder.audio_channels, "q_dropout": False, "bins": codec.codebook_size,
            "decay": 0.99, "kmeans_init": True, "kmeans_iters": 50, "threshold_ema_dead_code": 2,
            "orthogonal_reg_weight": 0.0, "orthogonal_reg_active_codes_only": False,
        },
        "no_quant": {},
    }  # fmt: skip
    return OmegaConf.to_yaml(OmegaConf.create(language)), OmegaConf.to_yaml(OmegaConf.create(compression))


# ------------------------------------------------------------------------------------------------ to transformers


def to_transformers(
    language: DictConfig, codec: EncodecConfig, text: T5Config, model: str
) -> tuple[MusicgenConfig, GenerationConfig]:
    """The language model's `xp.cfg` -> what `config.json` and `generation_config.json` hold.

    Args:
        codec: see `encodec`. text: the text encoder's own.
        model: what to call it in messages.

    Raises:
        InputError: it has something that transformers' model has not.
    """
    options, fuser = language.transformer_lm, language.fuser
    _refuse(options, SAME_LANGUAGE, model, "transformers")
    given = [name for name in language.conditioners if name != "args"]
    if given != [TEXT] or list(fuser.cross) != given or fuser.get("cross_attention_pos_emb"):
        raise InputError(
            f"{model} takes {' and '.join(given)} otherwise than by cross attention alone",
            "transformers has such models as MusicGen Melody, which encore does not convert to",
        )
    channels = 2 if (language.get("interleave_stereo_codebooks") or {}).get("use") else 1
    delays = list(language.codebooks_pattern.delay.delays)
    if delays != [k // channels for k in range(options.n_q)]:
        raise InputError(f"{model} delays its codebooks by {delays}, which transformers has no option for")
    card, dropout = int(options.card), float(options.dropout)
    frame_rate = codec.sampling_rate / math.prod(codec.upsampling_ratios)
    frames = longest(language, frame_rate)
    attention_dropout = options.get("attention_dropout")
    decoder = MusicgenDecoderConfig(
        vocab_size=card, hidden_size=options.dim, num_hidden_layers=options.num_layers,
        num_attention_heads=options.num_heads, ffn_dim=int(options.hidden_scale * options.dim), dropout=dropout,
        activation_dropout=dropout, attention_dropout=dropout if attention_dropout is None else attention_dropout,
        num_codebooks=options.n_q, audio_channels=channels, pad_token_id=card, bos_token_id=card,
        max_position_embeddings=_positions(frames, delays[-1], frame_rate),
    )  # fmt: skip
    decoder.decoder_start_token_id = card
    generation = GenerationConfig(
        do_sample=True, guidance_scale=float(language.classifier_free_guidance.inference_coef), max_length=frames,
        pad_token_id=card, bos_token_id=card, decoder_start_token_id=card,
    )  # fmt: skip
    return MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder), generation


def _positions(frames: int, delay: int, frame_rate: float) -> int:
    """Room for as many frames as the model was trained on, or, where that is all there is, what others claim."""
    needed = frames + delay
    return needed if frames < round(WINDOW * frame_rate) else max(POSITIONS, needed)


def encodec(cfg: DictConfig, model: str) -> EncodecConfig:
    """The codec's `xp.cfg` -> transformers' configuration of it.

    Raises:
        InputError: it has something that transformers' EnCodec has not.
    """
    if cfg.get("compression_model") != "encodec" or cfg.encodec.quantizer != "rvq":
        raise InputError(f"the codec of {model} is not an EnCodec with residual vector quantisation")
    seanet = OmegaConf.to_container(cfg.seanet, resolve=True)
    assert isinstance(seanet, dict)
    own = {**(seanet.pop("encoder", None) or {}), **(seanet.pop("decoder", None) or {})}
    trim = own.pop("trim_right_ratio", 1.0)
    _refuse(seanet, SAME_SEANET, f"the codec of {model}", "transformers")
    if any(value is not None for value in own.values()) or seanet.get("norm_params") or cfg.encodec.get("renormalize"):
        raise InputError(f"the codec of {model} has options of its own, which transformers has no option for")
    frame_rate = math.ceil(cfg.encodec.sample_rate / math.prod(seanet["ratios"]))  # as transformers rounds it
    bits = math.ceil(math.log2(cfg.rvq.bins))
    return EncodecConfig(
        **{theirs: seanet[ours] for ours, theirs in SEANET.items()}, upsampling_ratios=list(seanet["ratios"]),
        use_conv_shortcut=not seanet["true_skip"], trim_right_ratio=trim, sampling_rate=cfg.encodec.sample_rate,
        codebook_size=cfg.rvq.bins, codebook_dim=seanet["dimension"], norm_type="weight_norm", normalize=False,
        chunk_length_s=None, overlap=None,
        target_bandwidths=[cfg.rvq.n_q * bits * frame_rate / 1000],  # makes n_q codebooks
    )  # fmt: skip
