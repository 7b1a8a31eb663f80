"""Which weight of audiocraft is which of transformers, both ways. Values are moved, split and joined, never computed.

audiocraft packs queries, keys and values into one matrix; and the two libraries use torch's old and new weight norm,
which keep the same two tensors under other names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

State = dict[str, Tensor]

TEXT = "condition_provider.conditioners.{}.output_proj."
PROJECTION = "enc_to_dec_proj."
PACKED = "in_proj_weight"
PARTS = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
MODEL = (  # how names begin
    ("emb.", "decoder.model.decoder.embed_tokens."),
    ("out_norm.", "decoder.model.decoder.layer_norm."),
    ("linears.", "decoder.lm_heads."),
    ("transformer.layers.", "decoder.model.decoder.layers."),
)
LAYER = (  # parts of a layer
    ("self_attn", "self_attn"),
    ("cross_attention", "encoder_attn"),
    ("linear1", "fc1"),
    ("linear2", "fc2"),
    ("norm1", "self_attn_layer_norm"),
    ("norm_cross", "encoder_attn_layer_norm"),
    ("norm2", "final_layer_norm"),
)
NORM = (("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1"))


# ------------------------------------------------------------------------------------------------- language model


def language_to_transformers(state: State, text: str) -> State:
    """audiocraft's language model -> names of `MusicgenForConditionalGeneration`.

    Args:
        text: the conditioner that reads captions.

    Raises:
        KeyError: a weight that transformers' model has no place for.
    """
    renamed: State = {}
    for name, value in state.items():
        if name.startswith(TEXT.format(text)):
            renamed[PROJECTION + name.removeprefix(TEXT.format(text))] = value
            continue
        other = _renamed(name, MODEL, LAYER)
        if other.endswith(PACKED):
            for part, rows in zip(PARTS, value.chunk(3), strict=True):
                renamed[other.removesuffix(PACKED) + part] = rows.clone()
        else:
            renamed[other] = value
    return renamed


def language_to_audiocraft(state: State, text: str, width: int) -> State:
    """The decoder and projection of `MusicgenForConditionalGeneration` -> audiocraft's names.

    Args:
        width: of the model; where the text encoder is as wide, transformers has no projection, and audiocraft gets one
            that changes nothing.

    Raises:
        KeyError: a weight that audiocraft's model has no place for.
    """
    back = tuple((b, a) for a, b in MODEL), tuple((b, a) for a, b in LAYER)
    renamed: State = {}
    for name, value in state.items():
        if name.startswith(PROJECTION):
            renamed[TEXT.format(text) + name.removeprefix(PROJECTION)] = value
        elif name.endswith(PARTS[0]):
            stem = name.removesuffix(PARTS[0])
            renamed[_renamed(stem + PACKED, *back)] = torch.cat([state[stem + part] for part in PARTS])
        elif not name.endswith(PARTS[1:]):
            renamed[_renamed(name, *back)] = value
    if TEXT.format(text) + "weight" not in renamed:
        kind = next(iter(state.values())).dtype
        renamed[TEXT.format(text) + "weight"] = torch.eye(width, dtype=kind)
        renamed[TEXT.format(text) + "bias"] = torch.zeros(width, dtype=kind)
    return renamed


def _renamed(name: str, begins: Iterable[tuple[str, str]], parts: Iterable[tuple[str, str]]) -> str:
    for begin, other in begins:
        if name.startswith(begin):
            rest = name.removeprefix(begin)
            number, _, tail = rest.partition(".")
            part, _, leaf = tail.partition(".")
            if "layers." not in begin:
                return other + rest
            return f"{other}{number}.{dict(parts)[part]}.{leaf}"
    raise KeyError(f"there is no place for {name}")


# ---------------------------------------------------------------------------------------------------------- codec


def codec_to_transformers(state: State) -> State:
    """audiocraft's EnCodec -> names of transformers' `EncodecModel`."""
    renamed: State = {}
    for name, value in state.items():
        name = re.sub(r"^(encoder|decoder)\.model\.", r"\1.layers.", name)
        name = re.sub(r"\.(?:convtr\.convtr|conv\.conv)\.", ".conv.", name)
        name = re.sub(r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook.", name)
        renamed[_norm(name, 0)] = value
    return renamed


def codec_to_audiocraft(state: State, transposed: Iterable[int]) -> State:
    """transformers' `EncodecModel` -> audiocraft's names.

    Args:
        transposed: which of the decoder's layers are transposed convolutions.
    """
    up = {f"decoder.model.{number}" for number in transposed}
    renamed: State = {}
    for name, value in state.items():
        name = _norm(name, 1)
        name = re.sub(r"^(encoder|decoder)\.layers\.", r"\1.model.", name)
        name = re.sub(r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook.", name)
        layer = ".".join(name.split(".")[:3])
        name = name.replace(".conv.", ".convtr.convtr." if layer in up else ".conv.conv.")
        renamed[name] = value
    return renamed


def modern(state: State) -> State:
    """transformers' state with weight norm's tensors called as torch calls them today."""
    return {_norm(name, 0): value for name, value in state.items()}


def _norm(name: str, other: int) -> str:
    """The name with weight norm's tensors called as the one library (0: transformers) or the other does."""
    for pair in NORM:
        if name.endswith(pair[other]):
            return name.removesuffix(pair[other]) + pair[1 - other]
    return name
