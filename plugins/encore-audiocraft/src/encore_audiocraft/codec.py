"""The EnCodec of a checkpoint, frozen, with the same interface whether audiocraft or transformers built it."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from encore.errors import InputError, first_line
from encore.hub import fetchable, pretrained, quiet_transformers
from encore_audiocraft import packages
from encore_audiocraft.language import BUILD_ERRORS
from encore_audiocraft.library import building, load
from encore_audiocraft.packages import Package

load()
from audiocraft.models import builders  # noqa: E402
from audiocraft.models.encodec import HFEncodecCompressionModel  # noqa: E402


def build(package: Package, model: str, *, used: int | None = None, offline: bool = False) -> Any:
    """audiocraft's compression model of a package, in float32 and evaluation mode, on the CPU.

    Args:
        model: what to call it in messages.
        used: how many of its codebooks the language model reads; None: all.

    Raises:
        InputError: it is no EnCodec of one channel, or can't be loaded.
    """
    if packages.ELSEWHERE in package:
        codec = HFEncodecCompressionModel(open_encodec(package[packages.ELSEWHERE], model, offline=offline))
        renormalised = codec.model.config.normalize or codec.model.config.chunk_length_s
    else:
        codec = _from_state(package, model)
        renormalised = codec.renormalize
    if renormalised or codec.channels != 1:
        raise InputError(f"the codec of {model} normalises its input or encodes {codec.channels} channels jointly")
    if used is not None:
        try:
            codec.set_num_codebooks(used)
        except (AssertionError, ValueError, TypeError) as error:
            raise InputError(f"the codec of {model} has not the {used} codebooks of its configuration") from error
    frozen: nn.Module = codec.eval().requires_grad_(False)
    return frozen


def open_encodec(name: str, model: str, *, offline: bool = False) -> Any:
    """transformers' EnCodec that a checkpoint names instead of holding a codec.

    Raises:
        InputError: it is no EnCodec, or not to be had.
    """
    from transformers import EncodecModel

    if name.startswith("dac_"):
        raise InputError(f"the codec of {model} is a DAC, and only EnCodec is supported")
    here = offline or not fetchable(name)
    with quiet_transformers():
        return pretrained(
            EncodecModel, name, local_files_only=here, use_safetensors=True, dtype=torch.float32,
            what=f", the codec of {model}",
            hint="a codec of the hub must have been downloaded before, or the hub be reachable and --offline left out",
        )  # fmt: skip


def _from_state(package: Package, model: str) -> Any:
    cfg = packages.config(package, model)
    try:
        cfg.device = "cpu"
        with building():
            codec = builders.get_compression_model(OmegaConf.create(OmegaConf.to_container(cfg)))
        codec.load_state_dict(package[packages.STATE])
    except BUILD_ERRORS as error:
        raise InputError(f"can't load the codec of {model}: {first_line(error)}") from error
    return codec


def mono(codes: Tensor, channels: int) -> Tensor:
    """Interleaved codes [N, K, T] -> of one channel each [N * C, K / C, T]."""
    split = codes.reshape(len(codes), -1, channels, codes.shape[-1])
    return split.transpose(1, 2).flatten(0, 1)


def interleaved(codes: Tensor, channels: int) -> Tensor:
    """Codes of one channel each [N * C, K / C, T] -> [N, K, T], left and right in turn."""
    return codes.reshape(-1, channels, *codes.shape[1:]).transpose(1, 2).flatten(1, 2)
