"""Which models this backend can score clip by clip, read off a checkpoint's configuration before anything is built."""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from torch import Tensor

from encore.errors import InputError
from encore_audiocraft.packages import State


def check_unfit(state: State, cfg: DictConfig, model: str) -> None:
    """Raise InputError for what is not a causal, delayed language model over text, or lies about its size."""
    if cfg.get("lm_model") != "transformer_lm":
        raise InputError(f"{model} is a {cfg.get('lm_model')} model, not a MusicGen: it has no next token")
    options, pattern = cfg.transformer_lm, cfg.codebooks_pattern
    if pattern.modeling != "delay" or pattern.delay.get("flatten_first") or pattern.delay.get("empty_initial"):
        raise InputError(
            f"{model} does not interleave its codebooks by delays alone, and only such models can be scored"
        )
    if not (options.get("custom") or options.get("memory_efficient")):
        raise InputError(
            f"{model} was trained with torch's own attention, in which padded text can't be masked",
            "only models with transformer_lm.custom or transformer_lm.memory_efficient are supported",
        )
    if not options.get("causal"):
        raise InputError(f"{model} is not causal, so it has no likelihood of a next token")
    if not 0 < cfg.dataset.segment_duration < float("inf"):
        raise ValueError(f"dataset.segment_duration is {cfg.dataset.segment_duration}")
    layers = len({name.split(".")[2] for name in state if name.startswith("transformer.layers.")})
    codebooks = len({name.split(".")[1] for name in state if name.startswith("emb.")})
    table = state.get("emb.0.weight", torch.empty(0, 0))
    found = {"num_layers": layers, "n_q": codebooks, "card": len(table) - 1, "dim": table.shape[1]}
    for name, size in found.items():
        if options[name] != size:
            raise InputError(f"{model} says that {name} is {options[name]}, and its weights are of {size}")


def channels_of(cfg: DictConfig, model: str) -> int:
    stereo = cfg.get("interleave_stereo_codebooks") or {}
    if stereo.get("use") and stereo.get("per_timestep"):
        raise InputError(f"{model} interleaves left and right in time, which this backend can't read")
    return 2 if stereo.get("use") else 1


def conditioners_of(cfg: DictConfig, model: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Conditioner -> name of its T5, empty for a melody; and the chroma that stands for no melody."""
    encoders: dict[str, str] = {}
    melody: dict[str, Tensor] = {}
    for name, options in (cfg.get("conditioners") or {}).items():
        if name == "args":
            continue
        kind = options.model
        if kind == "t5":
            if options.t5.get("finetune") or options.t5.get("normalize_text"):
                raise InputError(f"the text encoder of {model} is trained along, or rewrites captions: not supported")
            encoders[name] = options.t5.name
        elif kind == "chroma_stem":
            encoders[name] = ""
            melody[name] = no_melody(options.chroma_stem, cfg.dataset.segment_duration)
        else:
            raise InputError(
                f"{model} is conditioned on {kind} ({name}), which this backend can't give it",
                "text-to-music, melody and stereo MusicGens are supported",
            )
    if sum(map(bool, encoders.values())) != 1:
        raise InputError(f"{model} has {sum(map(bool, encoders.values()))} text conditioners, and one is needed")
    used = {kind for kind in ("sum", "input_interpolate") if cfg.fuser.get(kind)}
    if used:
        raise InputError(f"{model} fuses conditions by {' and '.join(sorted(used))}, which this backend can't mask")
    return encoders, melody


def no_melody(options: DictConfig, seconds: float) -> Tensor:
    """The chroma of silence, repeated to the training length: what `MusicGen.generate` gives without a melody.

    Returns:
        [1, L, C]: with `argmax` every frame's loudest note is the first one, else there is none.
    """
    hop = options.get("winhop") or (options.get("winlen") or 2**options.radix2_exp) // 4
    frames = int(options.sample_rate * seconds) // hop + 1
    chroma = torch.zeros(1, frames, options.n_chroma)
    chroma[..., 0] = float(bool(options.get("argmax")))
    return chroma
